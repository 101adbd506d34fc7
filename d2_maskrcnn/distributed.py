"""Wrap a model for data-parallel training, get it back, and act together in all processes."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from d2_maskrcnn.errors import UserError
from detectron2.utils import comm

T = TypeVar("T")


def distribute(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in DistributedDataParallel, which averages gradients, if there are several processes.

    Each process keeps the batch normalization statistics of its own images, as in Detectron2.
    """
    if comm.get_world_size() == 1:
        return model
    parallel: Any = nn.parallel.DistributedDataParallel
    on_gpu = next(model.parameters()).is_cuda
    # PyTorch 2.15 renames the switch and warns about the earlier name.
    renamed = "forward_sync_buffers" in inspect.signature(parallel.__init__).parameters
    no_sync = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    wrapped: nn.Module = parallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **no_sync)
    return wrapped


def unwrap(model: nn.Module) -> Any:
    """Return the model inside DistributedDataParallel or DataParallel, or ``model`` itself if it is not wrapped."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def gather(value: T) -> list[T]:
    """Return the ``value`` of every process, in the order of their ranks."""
    return comm.all_gather(value) if comm.get_world_size() > 1 else [value]


def run_together(action: Callable[[], T]) -> T:
    """Run ``action`` in every process; a UserError in one is raised in all, which would otherwise wait forever.

    Raises:
        UserError: ``action`` raised it in this process or in another, which is named.
    """
    result: T | None = None
    failure = ""
    try:
        result = action()
    except UserError as error:
        if comm.get_world_size() == 1:
            raise
        failure = str(error)
    for rank, message in enumerate(gather(failure)):
        if message:
            raise UserError(f"Process {rank}: {message}")
    return result  # type: ignore[return-value]
