"""What to do when a GPU's memory is full."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

R = TypeVar("R")


def retry_if_cuda_oom(func: Callable[..., R]) -> Callable[..., R]:
    """Wraps ``func`` so that, out of GPU memory, it is tried again after the cache is emptied, and then on the CPU.

    On the CPU it gets tensors among its arguments copied there (those inside of lists or objects are not), and what
    it returns is on the CPU too. So ``func`` must not depend on the device, nor change anything before it fails.

    Examples:
        >>> iou = retry_if_cuda_oom(pairwise_iou)(boxes1, boxes2)  # doctest: +SKIP
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        for attempt in range(2):
            # Outside of the handler, as that holds the failed call's tensors.
            if attempt:
                torch.cuda.empty_cache()
            try:
                return func(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                pass
        logging.getLogger(__name__).info("Out of GPU memory: %s goes on on the CPU", getattr(func, "__name__", func))
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped


def _to_cpu(value: Any) -> Any:
    """A copy on the CPU of what lies on a GPU and can be moved (tensors, Boxes, masks)."""
    on_gpu = getattr(getattr(value, "device", None), "type", None) == "cuda"
    return value.to(device="cpu") if on_gpu and hasattr(value, "to") else value
