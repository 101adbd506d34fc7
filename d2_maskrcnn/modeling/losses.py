"""The losses of Mask R-CNN (arXiv:1703.06870, section 3) and the accuracies that are logged beside them.

Shape shorthand: M regions, F foreground regions among them, K classes (class K is the background), S the mask size.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from fvcore.nn import smooth_l1_loss

from d2_maskrcnn.modeling.box_coding import BoxCoder, at_least_float32
from detectron2.utils.events import EventStorage, get_event_storage

Scalars = dict[str, torch.Tensor | float]

# Names in torchvision.ops.
_IOU_LOSSES = {"giou": "generalized_box_iou_loss", "diou": "distance_box_iou_loss", "ciou": "complete_box_iou_loss"}
BOX_LOSSES = ("smooth_l1", *_IOU_LOSSES)
# Scalars of the event storages for which a caller collects them, see `collected_scalars`.
_collections: weakref.WeakKeyDictionary[EventStorage, Scalars] = weakref.WeakKeyDictionary()


def box_regression_loss(
    kind: str,
    coder: BoxCoder,
    deltas: torch.Tensor,
    reference: torch.Tensor,
    target: torch.Tensor,
    smooth_l1_beta: float = 0.0,
) -> torch.Tensor:
    """Sum the regression losses of foreground boxes.

    Args:
        kind: ``smooth_l1`` of the deltas (L1 if ``smooth_l1_beta`` is 0), or ``giou`` (arXiv:1902.09630), ``diou`` or
            ``ciou`` (both arXiv:1911.08287) of the decoded boxes.
        deltas: (F, 4), predicted. reference: (F, 4), anchors or proposals. target: (F, 4), ground-truth boxes.

    Returns:
        a scalar; 0 if F is 0, and still connected to ``deltas``.
    """
    deltas = at_least_float32(deltas)
    if kind == "smooth_l1":
        return smooth_l1_loss(deltas, coder.encode(reference, target), smooth_l1_beta, reduction="sum")
    from torchvision import ops  # takes longer than importing PyTorch, and few configs need it

    loss: torch.Tensor = getattr(ops, _IOU_LOSSES[kind])(coder.decode(deltas, reference), target, reduction="sum")
    return loss


def objectness_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the binary cross entropies of anchors. Args: logits (R,); labels (R,), 1 object, 0 background."""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def classification_loss(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Average the cross entropies of regions; 0 if M is 0. Args: logits (M, K + 1); classes (M,), K for background."""
    if classes.numel() == 0:
        return logits.sum() * 0.0
    return F.cross_entropy(at_least_float32(logits), classes)


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Average the binary cross entropies of mask pixels; 0 if F is 0.

    Args:
        logits: (F, S, S) of each region's ground-truth class. targets: (F, S, S) bool.
    """
    if targets.numel() == 0:
        return logits.sum() * 0.0
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


@torch.no_grad()
def classification_accuracy(
    logits: torch.Tensor, classes: torch.Tensor, foreground: torch.Tensor, num_classes: int
) -> Scalars:
    """Compute the accuracies of the box head, under Detectron2's names.

    Args:
        logits: (M, K + 1). classes: (M,), ``num_classes`` (K) for background. foreground: (F,) indices of the others.

    Returns:
        fractions in [0, 1]; empty if M is 0, without the foreground's if F is 0.
    """
    if classes.numel() == 0:
        return {}
    predicted, number = logits.argmax(dim=1), len(foreground)
    correct = predicted == classes
    values: Scalars = {"fast_rcnn/cls_accuracy": correct.double().mean()}
    if number > 0:
        values["fast_rcnn/fg_cls_accuracy"] = correct[foreground].sum() / number
        values["fast_rcnn/false_negative"] = (predicted[foreground] == num_classes).sum() / number
    return values


@torch.no_grad()
def mask_accuracy(logits: torch.Tensor, targets: torch.Tensor) -> Scalars:
    """Compute the pixel accuracies of the mask head, under Detectron2's names.

    Args:
        logits: (F, S, S) of each region's ground-truth class. targets: (F, S, S) bool.

    Returns:
        fractions in [0, 1]; empty if F is 0.
    """
    if targets.numel() == 0:
        return {}
    wrong = (logits > 0) != targets
    number, positive = targets.numel(), targets.sum()
    return {
        "mask_rcnn/accuracy": 1 - wrong.sum() / number,
        "mask_rcnn/false_positive": (wrong & ~targets).sum() / (number - positive).clamp(min=1),
        "mask_rcnn/false_negative": (wrong & targets).sum() / positive.clamp(min=1),
    }


def put_scalars(values: Scalars) -> None:
    """Write scalars to the active event storage with a single transfer from the device, unless they are collected.

    Raises:
        AssertionError: no event storage is active.
    """
    storage = get_event_storage()
    if storage in _collections:
        _collections[storage].update(values)
        return
    for name, value in read_scalars(values).items():
        storage.put_scalar(name, value)


@contextmanager
def collected_scalars() -> Iterator[Scalars]:
    """Collect what :func:`put_scalars` gets inside the context, so that the caller can read everything together.

    The caller writes them to the active event storage itself, after the context.

    Raises:
        AssertionError: no event storage is active.
    """
    storage = get_event_storage()
    scalars = _collections[storage] = Scalars()
    try:
        yield scalars
    finally:
        del _collections[storage]


def read_scalars(values: Scalars) -> dict[str, float]:
    """Return the numbers with a single transfer from the device, in the same order."""
    tensors = {name: value.detach().double() for name, value in values.items() if isinstance(value, torch.Tensor)}
    numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {**values, **dict(zip(tensors, numbers, strict=True))}
