import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.roi_heads.targets import append_gt, foreground_with_masks, mask_targets, proposal_classes
from detectron2.structures import Boxes, Instances


def test_classes_of_proposals():
    matches, labels = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 0, -1, 1], dtype=torch.int8)
    assert proposal_classes(matches, labels, torch.tensor([4, 2]), 5).tolist() == [2, 5, -1, 4]
    assert proposal_classes(matches, labels, torch.zeros(0, dtype=torch.int64), 5).tolist() == [5, 5, 5, 5]


def test_ground_truth_is_appended():
    proposals = Instances((64, 64), proposal_boxes=Boxes(torch.ones(2, 4)), objectness_logits=torch.zeros(2))
    target = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]])))
    joined = append_gt(proposals, target)
    assert joined.proposal_boxes.tensor[2].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert joined.objectness_logits[:2].tolist() == [0.0, 0.0] and joined.objectness_logits[2].sigmoid() > 0.999


def test_foreground_needs_masks():
    rois = Instances((64, 64), gt_classes=torch.tensor([0, 3]), gt_index=torch.tensor([0, 0]))
    assert foreground_with_masks([], [], []) == []
    with pytest.raises(UserError, match=r"MODEL\.MASK_ON"):
        foreground_with_masks([rois], [Instances((64, 64), gt_classes=torch.tensor([0]))], [1])
    assert len(foreground_with_masks([rois[1:]], [Instances((64, 64))], [0])[0]) == 0


@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_masks_of_the_foreground(narrow, kind):
    boxes = [[0.0, 0.0, 30.0, 30.0], [20.0, 10.0, 50.0, 60.0]]
    target = Instances((64, 64), gt_masks=narrow.rectangles(boxes, 64, 64, kind))
    rois = Instances((64, 64), gt_classes=torch.tensor([1, 0, 3]), gt_index=torch.tensor([1, 0, 0]))
    first, empty, last = foreground_with_masks([rois, rois[2:], rois], [target, Instances((64, 64)), target], [2, 0, 1])
    assert (len(first), len(empty), len(last)) == (2, 0, 1)

    def areas(masks):  # Detectron2's BitMasks have no area()
        return (masks.area() if kind == "polygon" else masks.tensor.sum((1, 2))).tolist()

    expected = areas(target.gt_masks)
    assert areas(first.gt_masks) == expected[::-1] and areas(last.gt_masks) == expected[1:]


@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_targets(narrow, kind):
    """The ground-truth mask is the left two thirds of its box."""
    box = [10.0, 20.0, 40.0, 50.0]
    region = Instances((64, 64))
    region.proposal_boxes = Boxes(torch.tensor([box, [10.0, 20.0, 30.0, 50.0], [30.0, 20.0, 40.0, 50.0]]))
    masks = narrow.rectangles([box], 64, 64, kind)
    region.gt_masks = masks[torch.tensor([0, 0, 0])]
    empty = Instances((64, 64))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    targets = mask_targets([empty, region, empty], 30)
    assert targets.shape == (3, 30, 30) and targets.dtype == torch.bool
    assert abs(targets[0].float().mean().item() - 2 / 3) < 0.05
    assert targets[1].float().mean() > 0.95 and targets[2].float().mean() < 0.05
    assert bool(targets[0][:, :18].all()) and not bool(targets[0][:, 22:].any())


def test_no_targets():
    empty = Instances((64, 64))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    assert mask_targets([], 28).shape == (0, 28, 28)
    assert mask_targets([empty], 28).shape == (0, 28, 28)
