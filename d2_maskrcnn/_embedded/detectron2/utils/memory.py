"""Retry operations that exceed the memory of a GPU."""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["retry_if_cuda_oom"]

R = TypeVar("R")


def retry_if_cuda_oom(func: Callable[..., R]) -> Callable[..., R]:
    """Wrap ``func`` so that, out of GPU memory, it is retried after the cache is emptied, and then on the CPU.

    On the CPU, tensors among the arguments are copied there (not those inside lists or objects), and the result is on
    the CPU. So ``func`` must not depend on the device, nor modify anything before it fails.

    Examples:
        >>> iou = retry_if_cuda_oom(pairwise_iou)(boxes1, boxes2)  # doctest: +SKIP
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> R:
        for attempt in range(2):
            # Outside the handler, which refers to the tensors of the failed call.
            if attempt:
                torch.cuda.empty_cache()
            try:
                return func(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                pass
        logging.getLogger(__name__).info("Out of GPU memory: %s continues on the CPU", getattr(func, "__name__", func))
        return func(*map(_to_cpu, args), **{name: _to_cpu(value) for name, value in kwargs.items()})

    return wrapped


def _to_cpu(value: Any) -> Any:
    """Return a copy on the CPU of what is on a GPU and can be moved (tensors, Boxes, masks)."""
    on_gpu = getattr(getattr(value, "device", None), "type", None) == "cuda"
    return value.to(device="cpu") if on_gpu and hasattr(value, "to") else value
