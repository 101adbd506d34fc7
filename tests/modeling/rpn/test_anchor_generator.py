import pytest
import torch

from d2_maskrcnn.modeling import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.anchor_generator import cell_anchors


def test_no_positions():
    generator = MaskRCNNAnchorGenerator(sizes=[[32]], aspect_ratios=[[1.0]], strides=[4])
    assert generator([torch.zeros(1, 8, 0, 5)])[0].tensor.shape == (0, 4)


def test_cells_by_hand():
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
    centres = levels[0].get_centers().view(3, 5, 2, 2)
    for row in range(3):
        for column in range(5):
            expected = torch.tensor([[4.0 * (column + offset), 4.0 * (row + offset)]] * 2)
            torch.testing.assert_close(centres[row, column], expected)


def test_kept_for_a_few_sizes_only():
    generator = MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    feature = torch.zeros(1, 1, 2, 2)
    assert generator([feature])[0] is generator([feature])[0]
    for size in range(3, 9):
        generator([torch.zeros(1, 1, size, size)])
    assert len(generator._cache) == 4
    assert generator([feature])[0].tensor.shape == (4, 4)


def test_what_inference_mode_kept_can_be_trained_with():
    generator = MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4])
    with torch.inference_mode():
        generator([torch.zeros(1, 1, 2, 2)])
    weight = torch.ones(4, 4, requires_grad=True)
    (weight * generator([torch.zeros(1, 1, 2, 2)])[0].tensor).sum().backward()
    assert weight.grad is not None


def test_not_in_the_state_dict():
    assert not MaskRCNNAnchorGenerator(sizes=[[8]], aspect_ratios=[[1.0]], strides=[4]).state_dict()
