"""Wrap a model for data-parallel training, and get it back."""

import inspect
from typing import Any

from torch import nn

from detectron2.utils import comm


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
