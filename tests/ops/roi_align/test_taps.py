import pytest
import torch
from roi_align_cases import CANONICAL, SCALES, make_features

from d2_maskrcnn.ops.roi_align.levels import PoolingSpec
from d2_maskrcnn.ops.roi_align.taps import box_groups, merge_kinds, pack_kind

SPEC = PoolingSpec((3, 4), SCALES, 0, True, *CANONICAL)
KINDS = [
    # (level, taps along y, taps along x, boxes) of each kind, padding cost, and the kind that each is merged into
    ([], 100, []),
    ([(0, 2, 2, 1)], 100, [0]),
    ([(0, 2, 2, 3), (0, 2, 3, 1)], 25, [1, 1]),  # 3 boxes, 4 bins, 2 taps more: 24
    ([(0, 2, 2, 3), (0, 2, 3, 1)], 24, [0, 1]),
    ([(0, 2, 2, 1), (1, 2, 3, 1)], 100, [0, 1]),  # of different levels
    ([(0, 2, 4, 1), (0, 3, 3, 1)], 100, [0, 1]),  # the larger group has fewer taps along x
    ([(0, 2, 2, 1), (0, 2, 3, 1), (0, 3, 3, 1)], 25, [2, 2, 2]),  # one after the other: 8, then 2 boxes, 24
    ([(0, 4, 4, 1), (0, 2, 2, 1), (0, 2, 3, 1)], 9, [0, 2, 2]),
]


@pytest.mark.parametrize(("kinds", "padding_cost", "expected"), KINDS)
def test_small_groups_are_merged_into_larger_ones(kinds, padding_cost, expected):
    packed = [pack_kind(*kind[:3]) for kind in kinds]
    merged = merge_kinds(packed, [kind[3] for kind in kinds], 4, padding_cost)
    assert merged == [packed[i] for i in expected]


def test_large_boxes_apart_from_small_ones():
    # A box far larger than its level's canonical size has many samples in a bin; small ones must not be padded to it.
    boxes = [torch.tensor([[0.0, 0, 16, 16], [-4000, -3000, 5000, 4000]]), torch.tensor([[5.0, 5, 30, 30]])]
    shapes = [feature.shape for feature in make_features()]
    groups = list(box_groups(shapes, torch.cat(boxes), [2, 1], SPEC, torch.float32))
    most_taps = {index: group.taps_per_bin for group in groups for index in group.boxes.tolist()}
    assert most_taps[0] <= 16 < most_taps[1]
