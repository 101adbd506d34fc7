"""The losses of Mask R-CNN (arXiv:1703.06870, section 3): L = L_cls + L_box + L_mask, and the RPN's two."""

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.precision import at_least_float32

_IOU_LOSSES = {"giou": generalized_box_iou_loss, "diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}
BOX_LOSSES = ("smooth_l1", *_IOU_LOSSES)


def box_regression_loss(
    kind: str,
    coder: BoxCoder,
    deltas: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum over foreground boxes of the distance between predicted and annotated boxes.

    Args:
        kind: ``smooth_l1`` of the deltas (L1 where beta is 0), or ``giou`` (arXiv:1902.09630), ``diou`` or ``ciou``
            (arXiv:1911.08287) of the decoded boxes.
        deltas: (F, 4), predicted. reference: (F, 4), anchors or proposals. target: (F, 4), annotated boxes.

    Returns:
        a scalar; 0, still connected to ``deltas``, when F is 0.
    """
    deltas = at_least_float32(deltas)
    if kind == "smooth_l1":
        return smooth_l1_loss(deltas, coder.encode(reference, target), smooth_l1_beta, reduction="sum")
    boxes = coder.decode(deltas, reference)
    return _IOU_LOSSES[kind](boxes, target, reduction="sum")


def objectness_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of binary cross entropies. Args: logits (R,); labels (R,), 1 object, 0 background. Returns a scalar."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def classification_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy. Args: logits (M, K + 1); classes (M,), K for background. Returns a scalar, 0 when M is 0."""
    if classes.numel() == 0:
        return logits.sum() * 0.0
    return F.cross_entropy(at_least_float32(logits), classes)


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over pixels of the binary cross entropy of the true class's mask.

    Args:
        logits: (F, S, S), already of the true class. targets: (F, S, S) bool.

    Returns:
        a scalar, 0 when F is 0.
    """
    if targets.numel() == 0:
        return logits.sum() * 0.0
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
