import math

import pytest
import torch

from d2_maskrcnn.modeling.poolers import MultiLevelROIPooler, channels_first, to_rois
from detectron2.structures import Boxes


def levels(channels=3, size=128, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, size // s, size // s, generator=generator).to(dtype) for s in (4, 8, 16, 32)]


def test_no_boxes():
    pooled, index = MultiLevelROIPooler(7, [4, 8, 16, 32])(
        levels(), [Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(0, 4))]
    )
    assert pooled.shape == (0, 3, 7, 7) and index.shape == (0,)


def test_level_of_each_size():
    pooler = MultiLevelROIPooler(7, [4, 8, 16, 32])
    sides = [0, 1, 111.9, 112, 223.9, 224, 447.9, 448, 5000]
    boxes = torch.tensor([[10.0, 20.0, 10 + side, 20 + side] for side in sides], dtype=torch.float64)
    # Level 4 (index 2) from 224 pixels on; each doubling is one level more.
    assert pooler.assign_levels(boxes).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    wide = torch.tensor([[0.0, 0.0, 448.0, 112.0]])
    assert pooler.assign_levels(wide).item() == 2
    assert MultiLevelROIPooler(7, [8, 16]).assign_levels(boxes).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def bilinear(feature, y, x):
    """(C,) of (C, H, W) at a point; beyond the edge by up to one cell the edge's value, further out zero."""
    height, width = feature.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(feature.shape[0], dtype=feature.dtype)
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = feature[:, y0, x0] * (1 - (x - x0)) + feature[:, y0, x1] * (x - x0)
    bottom = feature[:, y1, x0] * (1 - (x - x0)) + feature[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def slow_roi_align(feature, box, size, scale, ratio, aligned):
    """arXiv:1703.06870, section 3: the mean of regularly spaced samples in each bin."""
    shift = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (value * scale - shift for value in box)
    width, height = x1 - x0, y1 - y0
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    result = torch.zeros(feature.shape[0], size, size, dtype=feature.dtype)
    rows, columns = (ratio, ratio) if ratio > 0 else (max(math.ceil(height / size), 1), max(math.ceil(width / size), 1))
    for by in range(size):
        for bx in range(size):
            for iy in range(rows):
                for ix in range(columns):
                    y = y0 + height / size * (by + (iy + 0.5) / rows)
                    x = x0 + width / size * (bx + (ix + 0.5) / columns)
                    result[:, by, bx] += bilinear(feature, y, x) / (rows * columns)
    return result


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_against_a_slow_reference(aligned, ratio):
    features = levels(dtype=torch.float64, channels=2, size=64)
    boxes = [
        Boxes(torch.tensor([[3.0, 5.0, 40.0, 50.0], [0.0, 0.0, 64.0, 64.0], [10.0, 10.0, 10.5, 10.5]])),
        Boxes(torch.tensor([[-4.0, 2.0, 30.0, 70.0]])),
    ]
    pooler = MultiLevelROIPooler(3, [4, 8, 16, 32], ratio, aligned)
    pooled, index = pooler(features, boxes)
    rois = to_rois(boxes)
    for row, (roi, level) in enumerate(zip(rois.tolist(), index.tolist(), strict=True)):
        feature = features[level][int(roi[0])]
        expected = slow_roi_align(feature, roi[1:], 3, 1 / pooler.strides[level], ratio, aligned)
        torch.testing.assert_close(pooled[row], expected, rtol=1e-6, atol=1e-6)


def test_boxes_of_several_levels_keep_their_order():
    sides = torch.tensor([8.0, 300.0, 120.0, 700.0, 9.0])
    boxes = Boxes(torch.stack((sides * 0, sides * 0, sides, sides), dim=1))
    features = [torch.full((1, 1, 32, 32), float(i)) for i in range(4)]
    pooled, index = MultiLevelROIPooler(2, [4, 8, 16, 32])(features, [boxes])
    assert index.tolist() == [0, 2, 1, 3, 0]
    # Beyond the feature map there are zeros, so the top left bin tells the level.
    assert pooled[:, 0, 0, 0].tolist() == [0.0, 2.0, 1.0, 3.0, 0.0]


def test_one_level():
    feature = levels()[2]
    pooled, index = MultiLevelROIPooler(7, [16])(
        [feature], [Boxes(torch.tensor([[0.0, 0, 64, 64]])), Boxes(torch.zeros(0, 4))]
    )
    assert pooled.shape == (1, 3, 7, 7) and index.tolist() == [0]


def test_gradients():
    features = [feature.double().requires_grad_() for feature in levels(channels=1, size=32)]
    boxes = [Boxes(torch.tensor([[3.0, 5.0, 20.0, 30.0]])), Boxes(torch.tensor([[-4.0, 2.0, 30.0, 31.0]]))]
    pooler = MultiLevelROIPooler(2, [4, 8, 16, 32], 2)
    assert torch.autograd.gradcheck(lambda *f: pooler(list(f), boxes)[0], features)


def test_half_precision_features_keep_exact_coordinates():
    """bfloat16 cannot tell 1001 from 1004; the boxes must not pass through it."""
    feature = torch.arange(300.0).view(1, 1, 1, 300).expand(1, 1, 4, 300).contiguous()
    pooler = MultiLevelROIPooler(1, [4])
    box = [Boxes(torch.tensor([[402.0, 0.0, 406.0, 16.0]]))]
    pooled, _ = pooler([feature.to(torch.bfloat16)], box)
    assert pooled.dtype == torch.bfloat16 and pooled.item() == pytest.approx(100.5, abs=0.5)


@pytest.mark.parametrize("grad", [True, False])
def test_channels_first(grad):
    x = torch.randn(2, 3, 5, 7)
    with torch.set_grad_enabled(grad):
        result = channels_first(x.to(memory_format=torch.channels_last))
        assert channels_first(x) is x
    assert result.is_contiguous() and torch.equal(result, x)


def test_rois():
    assert to_rois([]).shape == (0, 5)
    boxes = [Boxes(torch.ones(2, 4)), Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(1, 4))]
    assert to_rois(boxes)[:, 0].tolist() == [0.0, 0.0, 2.0]
