import copy
import pickle

import numpy as np
import pytest
import torch

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks


def three():
    return Instances(
        (30, 40),
        boxes=Boxes(torch.arange(12.0).view(3, 4)),
        classes=torch.tensor([5, 6, 7]),
        masks=BitMasks(torch.eye(3)[:, None].expand(3, 2, 3)),
        contours=PolygonMasks([[np.arange(6.0)], [], [np.arange(8.0)]]),
        names=["a", "b", "c"],
        weights=np.array([0.1, 0.2, 0.3]),
    )


def test_without_fields():
    empty = Instances((3, 4))
    with pytest.raises(NotImplementedError, match="no length"):
        len(empty)
    assert empty.get_fields() == {}
    assert "num_instances=0" in repr(empty)
    empty.boxes = Boxes([])
    assert len(empty) == 0


def test_fields():
    instances = three()
    assert len(instances) == 3
    assert instances.image_size == (30, 40)
    assert instances.has("classes") and not instances.has("scores")
    instances.scores = torch.ones(3)
    assert instances.get("scores") is instances.scores
    instances.remove("scores")
    assert not instances.has("scores")
    for miss in (instances.get, instances.remove):
        with pytest.raises(KeyError, match="scores"):
            miss("scores")
    with pytest.raises(AttributeError, match="scores"):
        _ = instances.scores
    assert getattr(instances, "scores", None) is None
    assert list(instances.get_fields()) == ["boxes", "classes", "masks", "contours", "names", "weights"]


def test_fields_must_be_of_one_length():
    instances = three()
    for wrong in (torch.zeros(2), [], Boxes(torch.zeros(4, 4))):
        with pytest.raises(ValueError, match="3"):
            instances.extra = wrong
    with pytest.raises(ValueError, match="'b' has 2"):
        Instances((3, 4), a=[1], b=[1, 2])


def test_only_field_may_change_its_length():
    instances = Instances((3, 4), a=[1])
    instances.a = [1, 2]
    assert len(instances) == 2


def test_image_size_is_no_field():
    with pytest.raises(AttributeError, match="image_size"):
        three().image_size = (1, 1)


@pytest.mark.parametrize(
    ("item", "picked"),
    [
        (slice(0, 0), []),
        (torch.zeros(3, dtype=torch.bool), []),
        (torch.zeros(0, dtype=torch.long), []),
        (0, [0]),
        (-1, [2]),
        (-3, [0]),
        (slice(1, None), [1, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 2, 0]), [2, 2, 0]),
        (np.array([1]), [1]),
        ([1, 0], [1, 0]),
    ],
)
def test_indexing(item, picked):
    instances = three()
    chosen = instances[item]
    assert chosen.image_size == (30, 40)
    assert chosen.classes.tolist() == [[5, 6, 7][i] for i in picked]
    assert chosen.names == ["abc"[i] for i in picked]
    assert chosen.weights.tolist() == instances.weights[picked].tolist() if picked else len(chosen.weights) == 0
    assert chosen.boxes.tensor.tolist() == instances.boxes.tensor[picked].tolist()
    assert chosen.masks.tensor.tolist() == instances.masks.tensor[picked].tolist()
    assert [len(p) for p in chosen.contours] == [len(instances.contours.polygons[i]) for i in picked]


@pytest.mark.parametrize("index", [3, -4])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=str(index)):
        three()[index]


def test_iteration_is_refused():
    with pytest.raises(NotImplementedError):
        iter(three())


def test_cat():
    joined = Instances.cat([three(), three()[:0], three()[1]])
    assert len(joined) == 4
    assert joined.names == ["a", "b", "c", "b"]
    assert joined.classes.tolist() == [5, 6, 7, 6]
    assert joined.weights.tolist() == [0.1, 0.2, 0.3, 0.2]
    assert len(joined.boxes) == len(joined.masks) == len(joined.contours) == 4


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        ([Instances((1, 2), a=[1]), Instances((1, 3), a=[1])], "sizes"),
        ([Instances((1, 2), a=[1]), Instances((1, 2), b=[1])], "fields"),
        ([Instances((1, 2), a=range(1)), Instances((1, 2), a=range(2))], "range"),
    ],
)
def test_cat_refuses(parts, message):
    with pytest.raises(ValueError, match=message):
        Instances.cat(parts)


def test_to_moves_what_can_be_moved():
    moved = three().to(torch.float64)
    assert moved.classes.dtype == torch.float64
    assert moved.names == ["a", "b", "c"]
    assert moved.boxes.tensor.dtype == torch.float32


def test_copies_and_pickles():
    for copied in (copy.deepcopy(three()), copy.copy(three()), pickle.loads(pickle.dumps(three()))):
        assert repr(copied) == repr(three())
