import numpy as np
import pytest
import torch

from detectron2.structures import (
    Boxes,
    matched_pairwise_iou,
    pairwise_intersection,
    pairwise_ioa,
    pairwise_iou,
)

SOME = [[0.0, 0.0, 10.0, 20.0], [-5.0, -3.0, 30.0, 50.0], [4.0, 4.0, 4.0, 9.0]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], torch.zeros(0, 4)),
        (torch.zeros(0), torch.zeros(0, 4)),
        (torch.zeros(0, 4), torch.zeros(0, 4)),
        (SOME, torch.tensor(SOME)),
        (np.array(SOME), torch.tensor(SOME)),
        (torch.tensor(SOME, dtype=torch.float16), torch.tensor(SOME)),
        (torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, 2, 3, 4]])),
    ],
)
def test_creation(given, expected):
    boxes = Boxes(given)
    assert boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(boxes.tensor, expected, rtol=0, atol=0)
    assert len(boxes) == len(expected)


def test_float32_tensor_is_not_copied():
    tensor = torch.tensor(SOME)
    assert Boxes(tensor).tensor.data_ptr() == tensor.data_ptr()
    assert Boxes(tensor).clone().tensor.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 2, 4)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        Boxes(torch.zeros(shape))


def test_empty_boxes_keep_the_graph():
    source = torch.zeros(0, 4, requires_grad=True)
    Boxes(source * 2).tensor.sum().backward()
    assert source.grad is not None


@pytest.mark.parametrize(
    ("boxes", "area", "nonempty", "inside"),
    [
        ([], [], [], []),
        (SOME, [200.0, 1855.0, 0.0], [True, True, False], [True, False, True]),
        ([[3.0, 0.0, 1.0, 2.0]], [-4.0], [False], [True]),
        ([[0.0, 0.0, 25.0, 20.0]], [500.0], [True], [False]),  # the far side is no part of the inside
    ],
)
def test_area_nonempty_inside(boxes, area, nonempty, inside):
    boxes = Boxes(boxes)
    assert boxes.area().tolist() == area
    assert boxes.nonempty().tolist() == nonempty
    assert boxes.inside_box((21, 25)).tolist() == inside


def test_thresholds():
    boxes = Boxes(SOME)
    assert boxes.nonempty(threshold=10.0).tolist() == [False, True, False]
    assert boxes.inside_box((46, 26), boundary_threshold=5).tolist() == [True, True, True]
    assert boxes.inside_box((46, 26), boundary_threshold=4).tolist() == [True, False, True]


@pytest.mark.parametrize("boxes", [[], SOME])
def test_clip(boxes):
    clipped = Boxes(boxes)
    clipped.clip((15, 8))  # height, width
    expected = [[min(max(x, 0.0), limit) for x, limit in zip(box, (8, 15, 8, 15), strict=True)] for box in boxes]
    assert clipped.tensor.tolist() == expected


def test_clip_refuses_what_is_not_finite():
    for value in (float("inf"), float("nan")):
        with pytest.raises(ValueError, match="NaN"):
            Boxes([[0.0, 0.0, value, 1.0]]).clip((5, 5))


def test_scale_and_centers():
    boxes = Boxes(SOME)
    assert boxes.get_centers().tolist() == [[5.0, 10.0], [12.5, 23.5], [4.0, 6.5]]
    boxes.scale(2.0, 0.5)
    assert boxes.tensor.tolist() == [[0.0, 0.0, 20.0, 10.0], [-10.0, -1.5, 60.0, 25.0], [8.0, 2.0, 8.0, 4.5]]


@pytest.mark.parametrize(
    ("item", "picked"),
    [
        (slice(0, 0), []),
        (torch.zeros(3, dtype=torch.bool), []),
        (0, [0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        (torch.tensor([True, False, True]), [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        ([1], [1]),
    ],
)
def test_indexing(item, picked):
    assert Boxes(SOME)[item].tensor.tolist() == [SOME[i] for i in picked]


@pytest.mark.parametrize("item", [3, (slice(None), 2), (0, 0)])
def test_bad_index(item):
    with pytest.raises(IndexError):
        Boxes(SOME)[item]


def test_cat_iterate_move():
    assert len(Boxes.cat([])) == 0
    both = Boxes.cat([Boxes(SOME), Boxes([]), Boxes(SOME[:1])])
    assert both.tensor.tolist() == SOME + SOME[:1]
    assert [box.tolist() for box in both] == SOME + SOME[:1]
    assert both.to("cpu").device == torch.device("cpu")
    assert both.to(torch.float64).tensor.dtype == torch.float32
    assert "Boxes(" in repr(both)


def test_overlaps():
    first = Boxes([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 1.0, 5.0]])
    second = Boxes([[2.0, 2.0, 6.0, 4.0], [4.0, 0.0, 8.0, 4.0], [1.0, 1.0, 1.0, 5.0]])
    assert pairwise_intersection(first, second).tolist() == [[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert pairwise_iou(first, second).tolist() == [[pytest.approx(0.2), 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert pairwise_ioa(first, second).tolist() == [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert matched_pairwise_iou(first, second[torch.tensor([0, 2])]).tolist() == [pytest.approx(0.2), 0.0]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (2, 0)])
@pytest.mark.parametrize("overlap", [pairwise_intersection, pairwise_iou, pairwise_ioa])
def test_overlaps_with_nothing(overlap, n, m):
    assert overlap(Boxes(torch.ones(n, 4)), Boxes(torch.ones(m, 4))).shape == (n, m)


def test_matched_overlap_needs_equal_lengths():
    with pytest.raises(ValueError, match="3 and 1"):
        matched_pairwise_iou(Boxes(SOME), Boxes(SOME[:1]))


def test_overlap_agrees_with_counting_cells():
    """An independent reference: integer boxes on a grid, their cells counted."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 12, (2, 6, 2, 2), generator=generator).sort(dim=2).values.flatten(2)  # (2, 6, 4)
    grids = torch.zeros(2, 6, 12, 12, dtype=torch.bool)
    for side in range(2):
        for grid, (x0, y0, x1, y1) in zip(grids[side], corners[side].tolist(), strict=True):
            grid[y0:y1, x0:x1] = True
    shared = (grids[0][:, None] & grids[1][None]).sum(dim=(2, 3))
    union = (grids[0][:, None] | grids[1][None]).sum(dim=(2, 3)).clamp(min=1)
    actual = pairwise_iou(Boxes(corners[0]), Boxes(corners[1]))
    torch.testing.assert_close(actual, shared / union)
