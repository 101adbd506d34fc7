import pytest
import torch

from d2_maskrcnn.modeling import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.anchor_generator import cell_anchors


def test_no_positions():
    generator = MaskRCNNAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[4])
    assert generator([torch.zeros(1, 8, 0, 5)])[0].tensor.shape == (0, 4)


def test_cell_anchors_by_hand():
    boxes = cell_anchors([32, 64], [0.5, 1.0, 2.0])
    assert boxes.shape == (6, 4)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([32.0] * 3 + [64.0] * 3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0] * 2))
    assert torch.equal(boxes[:, :2], -boxes[:, 2:])
    assert boxes[1].tolist() == [-16.0, -16.0, 16.0, 16.0]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_positions_row_by_row(offset):
    generator = MaskRCNNAnchorGenerator(
        sizes=[[8], [16, 20]], aspect_ratios=[[1.0, 2.0]], strides=[4, 8], offset=offset
    )
    assert generator.num_anchors == [2, 4]
    levels = generator([torch.zeros(2, 1, 3, 5), torch.zeros(2, 1, 2, 3)])
    assert [len(level) for level in levels] == [3 * 5 * 2, 2 * 3 * 4]
    centers = levels[0].get_centers().view(3, 5, 2, 2)
    for row in range(3):
        for column in range(5):
            expected = torch.tensor([[4.0 * (column + offset), 4.0 * (row + offset)]] * 2)
            torch.testing.assert_close(centers[row, column], expected)


def test_cache_is_limited():
    generator = MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    features = [torch.zeros(1, 1, size, size) for size in range(2, 7)]
    first = generator(features[:1])[0]
    for feature in features[1:4]:
        generator([feature])
    assert generator(features[:1])[0] is first
    for feature in features[1:]:
        generator([feature])
    again = generator(features[:1])[0]
    assert again is not first and torch.equal(again.tensor, first.tensor)


def test_anchors_cached_in_inference_mode_allow_training():
    generator = MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    with torch.inference_mode():
        generator([torch.zeros(1, 1, 2, 2)])
    weight = torch.ones(4, 4, requires_grad=True)
    (weight * generator([torch.zeros(1, 1, 2, 2)])[0].tensor).sum().backward()
    assert weight.grad is not None


def test_not_in_the_state_dict():
    assert not MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4]).state_dict()
