"""A model in one process or in several."""

import inspect
from typing import Any

from torch import nn

from detectron2.utils import comm


def distribute(model: nn.Module) -> nn.Module:
    """``model`` itself where there is one process, else wrapped so that gradients are averaged over all of them."""
    if comm.get_world_size() == 1:
        return model
    parallel: Any = nn.parallel.DistributedDataParallel
    on_gpu = next(model.parameters()).is_cuda
    # Each process keeps its own statistics of batch norm; PyTorch has renamed the switch.
    renamed = "forward_sync_buffers" in inspect.signature(parallel.__init__).parameters
    own_buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    wrapped: nn.Module = parallel(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **own_buffers)
    return wrapped
