"""Training targets of the ROI heads: the ground truth that each sampled proposal is compared with."""

from collections.abc import Sequence
from typing import Any

import torch

from d2_maskrcnn.errors import UserError
from detectron2.structures import Boxes, Instances

# Objectness logit of ground-truth boxes among the proposals: its sigmoid differs from 1 by 1e-10.
_GT_LOGIT = 23.0259


def append_gt(proposals: Instances, target: Instances) -> Instances:
    """Append an image's ground-truth boxes to its proposals, with the highest objectness.

    Raises:
        AssertionError: the proposals have further fields that ``target`` lacks. (Detectron2 raises it as well.)
    """
    own = {"proposal_boxes", "objectness_logits"}
    further = [name for name in proposals.get_fields() if name not in own]
    missing = [name for name in further if not target.has(name)]
    if missing:
        raise AssertionError(f"the ground truth has no {', '.join(missing)}, which the proposals have")
    gt = Instances(
        proposals.image_size,
        proposal_boxes=target.gt_boxes,
        objectness_logits=proposals.objectness_logits.new_full((len(target),), _GT_LOGIT),
        **{name: target.get(name) for name in further},
    )
    return Instances.cat([proposals, gt])


def add_ground_truth_to_proposals(gt: Sequence[Instances | Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append each image's ground-truth boxes to its proposals, see :func:`append_gt`; Detectron2's name of it.

    Args:
        gt: per image Instances with ``gt_boxes``, or the boxes alone.
    """
    targets: list[Instances] = []
    for given, item in zip(gt, proposals, strict=True):
        targets.append(Instances(item.image_size, gt_boxes=given) if isinstance(given, Boxes) else given)
    return [append_gt(item, target) for item, target in zip(proposals, targets, strict=True)]


def proposal_classes(
    matches: torch.Tensor, labels: torch.Tensor, gt_classes: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Return the class of each proposal: its ground truth's, ``num_classes`` for background, -1 if ignored.

    Args:
        matches, labels: (R,) each, of :class:`d2_maskrcnn.modeling.matcher.Matcher`. gt_classes: (G,).
    """
    if len(gt_classes) == 0:
        return torch.full_like(matches, num_classes)
    classes = gt_classes[matches]
    classes[labels == 0] = num_classes
    classes[labels == -1] = -1
    return classes


def label_rois(
    proposals: Instances, sampled: torch.Tensor, classes: torch.Tensor, matches: torch.Tensor, target: Instances
) -> Instances:
    """Select the sampled proposals of an image and add their ground truth.

    Args:
        proposals: R of an image. sampled: (n,) indices into them.
        classes: (R,), see :func:`proposal_classes`. matches: (R,), indices into ``target``. target: ground truth.

    Returns:
        the n sampled proposals with ``gt_classes``, ``gt_index`` (the match) and ``gt_boxes``; the last two are
        meaningless for the background.
    """
    rois = proposals[sampled]
    rois.gt_classes = classes[sampled]
    rois.gt_index = matches[sampled]
    if len(target) > 0:
        rois.gt_boxes = target.gt_boxes[rois.gt_index]
    else:
        rois.gt_boxes = Boxes(torch.zeros_like(rois.proposal_boxes.tensor))
    return rois


def foreground_with_masks(rois: list[Instances], targets: list[Instances], counts: Sequence[int]) -> list[Instances]:
    """Select the foreground regions of each image and add their ``gt_masks``.

    Args:
        rois: per image, foreground first. targets: ground truth of each image. counts: foreground regions of each.

    Raises:
        UserError: the ground truth has no masks.
    """
    foreground = [item[:count] for item, count in zip(rois, counts, strict=True)]
    used = [(item, target) for item, target in zip(foreground, targets, strict=True) if len(item) > 0]
    if not all(target.has("gt_masks") for _, target in used):
        raise UserError(
            "the annotations have no masks (gt_masks), which the mask head needs: give each a segmentation, or set "
            "MODEL.MASK_ON to False"
        )
    indices = _for_masks([item.gt_index for item, _ in used], [target.gt_masks for _, target in used])
    for (item, target), index in zip(used, indices, strict=True):
        item.gt_masks = target.gt_masks[index]
    return foreground


def mask_targets(foreground: list[Instances], size: int) -> torch.Tensor:
    """Crop the ground-truth masks to the regions' boxes and resize them to ``size`` x ``size``.

    Args:
        foreground: per image its foreground regions, with ``proposal_boxes`` and ``gt_masks``.

    Returns:
        (F, size, size) bool, the regions of all images one after the other.
    """
    device = foreground[0].proposal_boxes.device if foreground else torch.device("cpu")
    masks = [rois.gt_masks for rois in foreground if len(rois) > 0]
    if not masks:
        return torch.zeros((0, size, size), dtype=torch.bool, device=device)
    boxes = _for_masks([rois.proposal_boxes.tensor for rois in foreground if len(rois) > 0], masks)
    targets = [item.crop_and_resize(own, size) for item, own in zip(masks, boxes, strict=True)]  # (Fi, size, size)
    return torch.cat(targets).to(device, torch.bool, non_blocking=True)


def _for_masks(values: list[torch.Tensor], masks: Sequence[Any]) -> Sequence[torch.Tensor]:
    """Move one tensor per image to the device of the masks, with a single transfer: polygons are on the CPU."""
    if not values:
        return []
    device = getattr(masks[0], "device", values[0].device)
    return torch.cat(values).to(device).split([len(value) for value in values])
