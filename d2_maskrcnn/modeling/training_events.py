"""Numbers about a training step, written to Detectron2's event storage where one is active."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from detectron2.utils.events import get_event_storage, has_event_storage

_MUTED: ContextVar[bool] = ContextVar("muted_events", default=False)


def events_wanted() -> bool:
    """Whether an event storage is active and not muted: otherwise the numbers need not be computed."""
    return has_event_storage() and not _MUTED.get()


@contextmanager
def muted_events() -> Iterator[None]:
    """Inside the ``with`` block nothing is written: a validation loss is not mixed with the training's numbers."""
    token = _MUTED.set(True)
    try:
        yield
    finally:
        _MUTED.reset(token)


def put_events(values: dict[str, torch.Tensor | float]) -> None:
    """Writes the scalars to the active event storage, if there is one, with one transfer from the device for all of
    them.
    """
    if not values or not events_wanted():
        return
    numbers = {name: float(value) for name, value in values.items() if not isinstance(value, torch.Tensor)}
    tensors = {name: value.detach().double() for name, value in values.items() if isinstance(value, torch.Tensor)}
    if tensors:
        numbers.update(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    storage = get_event_storage()
    for name in values:
        storage.put_scalar(name, numbers[name])


@torch.no_grad()
def put_classification_events(logits: torch.Tensor, classes: torch.Tensor, num_classes: int) -> None:
    """Accuracies of the box head.

    Args:
        logits: (M, K + 1). classes: (M,), ``num_classes`` (K) for background.
    """
    if classes.numel() == 0 or not events_wanted():
        return
    predicted = logits.argmax(dim=1)
    right, foreground = predicted == classes, classes < num_classes
    values: dict[str, torch.Tensor | float] = {"fast_rcnn/cls_accuracy": right.double().mean()}
    number = int(foreground.sum())
    if number > 0:
        values["fast_rcnn/fg_cls_accuracy"] = (right & foreground).sum() / number
        values["fast_rcnn/false_negative"] = (predicted[foreground] == num_classes).sum() / number
    put_events(values)
