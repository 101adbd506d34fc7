"""PyTorch's layers and functions with the few additions that detectors need."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from detectron2._names import lookup

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Linear",
    "cat",
    "cross_entropy",
    "empty_input_loss_func_wrapper",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
    "shapes_to_tensor",
]

# PyTorch's own: all of them accept empty batches.
BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d``, followed by an optional normalization and an optional activation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create the layer with the arguments of ``torch.nn.Conv2d`` and two keywords.

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
        """Map (N, C, H, W) to (N, C', H', W'); N may be 0."""
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def cat(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...], dim: int = 0) -> torch.Tensor:
    """Concatenate tensors; a single tensor is returned without a copy.

    Raises:
        ValueError: ``tensors`` is not a list or tuple.
    """
    if not isinstance(tensors, (list, tuple)):
        raise ValueError(f"cat needs a list or tuple of tensors, got {type(tensors).__name__}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def empty_input_loss_func_wrapper(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap a loss function so that its mean over an empty input is 0, with a gradient of 0, instead of NaN."""

    @functools.wraps(loss_func)
    def wrapped(input: torch.Tensor, target: torch.Tensor, *, reduction: str = "mean", **kwargs: Any) -> torch.Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped


# Cross-entropy of logits (N, C) or (N, C, ...) and class indices (N,) or (N, ...).
cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def shapes_to_tensor(x: list[int], device: torch.device | None = None) -> torch.Tensor:
    """Convert a list of integers, some of which may be scalar tensors, to a tensor."""
    return torch.as_tensor([int(value) for value in x], device=device)


def nonzero_tuple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the indices of nonzero elements, one tensor per dimension; a scalar counts as one element."""
    return (x.unsqueeze(0) if x.dim() == 0 else x).nonzero(as_tuple=True)


def move_device_like(src: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """Return ``src`` on the device of ``dst``."""
    return src.to(dst.device)


__getattr__ = lookup(__name__)
