"""Lazy masks against whole-image masks."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from d2_maskrcnn import engine_info
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, MaskInstances
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

SIZE = (70, 90)
BOXES = torch.tensor([[2.0, 4, 22, 24], [10, 10, 50, 30], [0, 0, 6, 6]])


def test_no_masks():
    masks = BoxMasks(np.zeros((0, 4)), np.zeros((0, 28, 28)), SIZE)
    assert len(masks) == 0 and masks.rles() == [] and list(masks) == [] and len(masks.areas()) == 0


def test_probabilities_before_the_threshold(random_masks):
    for index in range(len(random_masks)):
        window, values = random_masks.probability_crop(index)
        assert window == random_masks.crop(index)[0]
        assert ((values >= random_masks.threshold) == random_masks.crop(index)[1]).all()
    assert values.dtype == np.float32 and len(np.unique(values)) > 2


def test_rles_are_those_of_the_images(random_masks):
    for index, image in enumerate(random_masks):
        expected = mask_util.encode(np.asfortranarray(image, dtype=np.uint8))
        assert random_masks.rle(index) == {"size": list(SIZE), "counts": expected["counts"].decode()}


def test_polygons_are_inside_the_mask(random_masks):
    large = np.flatnonzero(random_masks.areas() > 30)
    for index in large:
        x, y = np.concatenate(random_masks.polygons(index)).astype(int).T
        assert random_masks.image(index)[y, x].all()
    assert len(large) > 10


def test_selecting_and_resizing(random_masks):
    chosen = random_masks[np.array([3, 1])]
    assert (chosen.image(0) == random_masks.image(3)).all()
    assert (random_masks[random_masks.areas() > 0].areas() > 0).all()
    larger = random_masks.resized(140, 180)
    ratio = larger.areas().sum() / random_masks.areas().sum()
    assert ratio == pytest.approx(4, rel=0.05)


def test_non_finite_boxes_have_no_pixels():
    masks = BoxMasks(np.array([[np.nan, 0, 5, 5], [0, 0, np.inf, 5]]), np.ones((2, 28, 28)), SIZE)
    assert masks.areas().tolist() == [0, 0] and masks.polygons(0) == []


def test_crops_of_images(random_masks):
    images = np.stack(list(random_masks))
    crops = CropMasks.from_images(images, SIZE)
    assert (np.stack(list(crops)) == images).all()
    assert crops.rles() == random_masks.rles()
    assert (crops[3].image(0) == images[3]).all()
    with pytest.raises(ValueError, match="size"):
        CropMasks.from_images(images, (5, 5))


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        BoxMasks(np.zeros((2, 4)), np.zeros((3, 28, 28)), SIZE)


@pytest.fixture
def instances() -> MaskInstances:
    raw = Instances((40, 60), pred_boxes=Boxes(BOXES), scores=torch.tensor([0.9, 0.8, 0.7]))
    probabilities = torch.rand((3, 28, 28), generator=torch.Generator().manual_seed(0)) * 0.2 + 0.5
    return MaskInstances.from_probabilities(raw, probabilities)


def test_masks_are_made_when_they_are_read(instances):
    assert instances.has("pred_masks") and "pred_masks" not in instances._fields
    assert instances.pred_masks.shape == (3, 40, 60) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_masks is instances.pred_masks
    assert instances.pred_masks[1].any()


def test_rles_need_no_images(instances):
    rles = instances.pred_masks_rle
    assert "pred_masks" not in instances._fields
    assert (mask_util.decode(rles).transpose(2, 0, 1).astype(bool) == instances.pred_masks.numpy()).all()
    assert (np.stack(list(instances.box_masks)) == instances.pred_masks.numpy()).all()


@pytest.mark.parametrize(
    "item",
    [0, -1, slice(0, 0), slice(1, 3), torch.tensor([2, 0]), torch.tensor([True, False, True])],
    ids=["first", "last", "empty", "slice", "index", "bool"],
)
def test_indexing(instances, item):
    selected = instances[item]
    assert "pred_masks" not in selected._fields
    expected = instances.pred_masks[item]
    assert (selected.pred_masks == expected.reshape(-1, 40, 60)).all()
    assert len(selected) == len(selected.pred_masks)


def test_moving_copying_pickling(instances):
    for other in (instances.to("cpu"), copy.deepcopy(instances), pickle.loads(pickle.dumps(instances))):
        assert "pred_masks" not in other._fields
        assert (other.pred_masks == instances.pred_masks).all()


def test_the_evaluator_needs_no_images(instances):
    if engine_info().name != "embedded":
        pytest.skip("Detectron2's own evaluator reads pred_masks")
    instances.pred_classes = torch.zeros(3, dtype=torch.int64)
    results = instances_to_coco_json(instances.to("cpu"), 1)
    assert "pred_masks" not in instances._fields
    assert [r["segmentation"] for r in results] == instances.pred_masks_rle


def test_fields_and_concatenation(instances):
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_masks"}
    assert len(Instances.cat([instances, instances]).pred_masks) == 6


def test_setting_and_removing(instances):
    instances.pred_masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    assert not instances.pred_masks.any() and instances.box_masks is None and not instances.has("pred_masks_rle")
    instances.remove("pred_masks")
    assert not instances.has("pred_masks")
    with pytest.raises(AttributeError):
        _ = instances.pred_masks


def test_removing_before_reading(instances):
    instances.remove("pred_masks")
    assert not instances.has("pred_masks") and instances.has("scores")
