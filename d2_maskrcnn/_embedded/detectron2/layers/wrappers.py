"""PyTorch's own layers and functions with the few additions that detectors need."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "cat",
    "cross_entropy",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
]

# PyTorch's own do: all of them take empty batches.
BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` followed by an optional normalisation and an optional activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what ``torch.nn.Conv2d`` takes, and by keyword:

        Args:
            norm (nn.Module | None): applied to the convolution's output; its parameters are named ``norm.*``.
            activation (Callable[[Tensor], Tensor] | None): applied last.
        """
        norm: nn.Module | None = kwargs.pop("norm", None)
        activation: Callable[[torch.Tensor], torch.Tensor] | None = kwargs.pop("activation", None)
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W'); N may be 0."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...], dim: int = 0) -> torch.Tensor:
    """``torch.cat`` that hands a single tensor through without copying it.

    Raises:
        ValueError: ``tensors`` is no list or tuple.
    """
    if not isinstance(tensors, (list, tuple)):
        raise ValueError(f"cat needs a list or tuple of tensors, got {type(tensors).__name__}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def cross_entropy(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any) -> torch.Tensor:
    """``F.cross_entropy`` whose mean over nothing is 0 (with a gradient of 0) instead of NaN.

    Args:
        input: logits (N, C) or (N, C, ...).
        target: class indices (N,) or (N, ...).
        reduction: "mean", "sum" or "none".
        kwargs: other arguments of ``F.cross_entropy``.
    """
    if target.numel() == 0 and reduction == "mean":
        return input.sum() * 0.0
    return F.cross_entropy(input, target, reduction=reduction, **kwargs)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Indices of what is not 0, one tensor for each dimension; a scalar counts as one element."""
    return (x.unsqueeze(0) if x.dim() == 0 else x).nonzero(as_tuple=True)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """``src`` on the device of ``dst``."""
    return src.to(dst.device)
