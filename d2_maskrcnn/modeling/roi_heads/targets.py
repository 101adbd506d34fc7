"""Proposals with what training asks of them: the annotation that each of them stands for."""

import torch

from d2_maskrcnn.errors import UserError
from detectron2.structures import Boxes, Instances

# The logit of an annotated box among the proposals: as sure as a float32 probability can be.
_GT_LOGIT = 23.0259


def append_gt(proposals: Instances, target: Instances) -> Instances:
    """The proposals of an image, then its annotated boxes as sure proposals."""
    logits = proposals.objectness_logits
    annotated = Instances(
        proposals.image_size,
        proposal_boxes=target.gt_boxes,
        objectness_logits=logits.new_full((len(target),), _GT_LOGIT),
    )
    return Instances.cat([proposals, annotated])


def label_rois(
    proposals: Instances, chosen: torch.Tensor, classes: torch.Tensor, matches: torch.Tensor, target: Instances
) -> Instances:
    """What the box head is trained on.

    Args:
        proposals: R of an image. chosen: (n,) indices of the sampled ones. classes: (R,), the background included.
        matches: (R,) index of the annotation that each overlaps most. target: the annotations.

    Returns:
        the n sampled proposals with ``gt_classes``, ``gt_index`` and ``gt_boxes`` (meaningless for the background).
    """
    sampled = proposals[chosen]
    sampled.gt_classes = classes[chosen]
    sampled.gt_index = matches[chosen]
    if len(target) > 0:
        sampled.gt_boxes = target.gt_boxes[sampled.gt_index]
    else:
        sampled.gt_boxes = Boxes(torch.zeros_like(sampled.proposal_boxes.tensor))
    return sampled


def foreground_with_masks(rois: Instances, target: Instances, num_classes: int) -> Instances:
    """Only the foreground regions, with ``gt_masks``: masks are not fetched for the background.

    Raises:
        UserError: the annotations have no masks.
    """
    foreground = rois[rois.gt_classes < num_classes]
    if len(foreground) > 0:
        if not target.has("gt_masks"):
            raise UserError(
                "the annotations have no masks (gt_masks), which the mask head needs: give each a segmentation, or set "
                "MODEL.MASK_ON to False"
            )
        foreground.gt_masks = target.gt_masks[foreground.gt_index]
    return foreground
