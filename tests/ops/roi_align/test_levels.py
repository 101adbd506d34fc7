import math

import pytest
import torch

from d2_maskrcnn.ops.roi_align.levels import assign_levels


def square(*sides):
    return torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides]).view(-1, 4)


@pytest.mark.parametrize(
    ("boxes", "levels"),
    [
        (square(), []),
        (square(1, 111, 112, 113, 223, 224, 447, 448, 5000), [0, 0, 1, 1, 1, 2, 2, 3, 3]),
        (torch.tensor([[0, 0, 448.0, 112], [0, 0, 56, 224], [5, 5, 5, 5], [5, 5, 5, 900]]), [2, 1, 0, 0]),
        (torch.tensor([[0, 0, math.nan, 5], [9, 0, 5, 5], [0, 0, math.inf, 5]]), [0, 0, 3]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels(boxes, levels, dtype):
    assert assign_levels(boxes.to(dtype), 4).tolist() == levels


def test_equals_equation_1():
    sides = torch.rand((2, 1000), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 700
    boxes = torch.stack([torch.zeros(1000), torch.zeros(1000), *sides], dim=1).double()
    formula = (4 + torch.log2((sides[0] * sides[1]).sqrt() / 224)).floor().clamp(2, 5) - 2
    assert torch.equal(assign_levels(boxes, 4), formula.long())


@pytest.mark.parametrize(("num_levels", "canonical_level", "level"), [(1, 2, 0), (4, 9, 3), (4, -9, 0), (2, 1, 1)])
def test_levels_are_clamped(num_levels, canonical_level, level):
    assert assign_levels(square(300), num_levels, 224.0, canonical_level).tolist() == [level]
