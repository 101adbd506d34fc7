"""Batch normalization with the statistics of the batches of all processes."""

import torch
import torch.distributed as dist
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn

__all__ = ["NaiveSyncBatchNorm", "SyncBatchNorm"]


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batches of all processes, on any device and backend (gloo on CPUs as well).

    The result is that of a single process with the whole batch: each sample counts the same, even if processes have
    different numbers of them or none. Slower than ``nn.SyncBatchNorm``, which runs on GPUs only.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W); the shape stays."""
        if not self.training or not _is_distributed():
            return super().forward(input)
        return _normalize_over_processes(self, input)


class SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` on GPUs and :class:`NaiveSyncBatchNorm` on CPUs, which the former does not support."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W); the shape stays."""
        if input.is_cuda or not self.training or not _is_distributed():
            return super().forward(input)
        return _normalize_over_processes(self, input)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _normalize_over_processes(layer: nn.BatchNorm2d | nn.SyncBatchNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalize ``x`` by mean and variance of the inputs of all processes, and update the running statistics."""
    # In float32, since sums of float16 overflow. One reduction for the count, the sums and the sums of squares.
    values = x.float()
    count = values.new_full((1,), values.numel() // max(1, values.shape[1]))
    sums = torch.cat((count, values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))))  # (1 + 2C,)
    totals = differentiable_all_reduce(sums)
    total = totals[:1].clamp(min=1)
    mean, mean_square = (totals[1:] / total).chunk(2)  # (C,) each
    variance = (mean_square - mean.square()).clamp(min=0)
    _update_running_statistics(layer, mean.detach(), (variance * total / (total - 1).clamp(min=1)).detach())
    scale = (variance + layer.eps).rsqrt()  # (C,)
    shift = -mean * scale
    if layer.affine:
        scale, shift = scale * layer.weight, shift * layer.weight + layer.bias
    return (values * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(x.dtype)


@torch.no_grad()
def _update_running_statistics(
    layer: nn.BatchNorm2d | nn.SyncBatchNorm, mean: torch.Tensor, unbiased_variance: torch.Tensor
) -> None:
    if not layer.track_running_stats or layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_(unbiased_variance.to(layer.running_var.dtype), momentum)
