"""Convolution with normalization and ReLU; a constant normalization is folded into the convolution's weights.

Frozen batch norm, and batch norm in evaluation mode, compute ``y = x * scale + shift`` with constants. Therefore
``norm(conv(x, w)) = conv(x, w * scale) + shift``, which saves a pass over the activations, and another one over their
gradients. Parameters and buffers keep the names of a separate norm.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from d2_maskrcnn.ops import onednn, winograd
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm

_Sources = tuple[tuple[torch.Tensor, int], ...]
_Folded = tuple[torch.Tensor, torch.Tensor]


class ConvNorm(nn.Conv2d):
    """Compute ``relu(norm(conv(x)) + residual)``; norm, residual and ReLU are optional.

    The padding keeps the size at stride 1, for odd kernels. The convolution has a bias only if it has no norm.

    Args:
        norm: a name that Detectron2's ``get_norm`` knows; empty for none. The norm is the submodule ``norm``.
        relu: whether a ReLU comes last.

    Attributes:
        keep_folded: whether folded weights are cached between calls. None caches them only on accelerators, where
            launching a few small kernels per layer costs more than the memory; on a CPU, folding a whole ResNet-101
            takes less than 1% of its time.
        winograd, winograd_in_training: whether 3x3 convolutions use :mod:`d2_maskrcnn.ops.winograd` where it is
            faster, in evaluation mode and in training mode.
    """

    keep_folded: bool | None = None
    winograd: bool = True
    winograd_in_training: bool = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        relu: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=not norm,
        )
        self.norm: Any = get_norm(norm, out_channels)
        self.relu = relu
        self._cache: tuple[_Sources, _Folded] | None = None

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, overwrite_residual: bool = False
    ) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H', W').

        Args:
            residual: (N, out, H', W'), added before the ReLU.
            overwrite_residual: whether the result may be stored in ``residual`` where no gradients are needed.
        """
        folded = self._folded()
        if folded is None and self.norm is not None:
            return self._finish(self._normalize(self._convolve(x, self.weight, self.bias)), residual, self.relu)
        weight, bias = (self.weight, self.bias) if folded is None else folded
        return self._convolve(x, weight, bias, residual, self.relu, overwrite_residual)

    def _convolve(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None = None,
        relu: bool = False,
        overwrite_residual: bool = False,
    ) -> torch.Tensor:
        plain = self.stride == self.dilation == (1, 1) and self.groups == 1
        enabled = self.winograd_in_training if self.training else self.winograd
        if enabled and plain and winograd.is_faster(x, weight):
            if residual is None:
                return winograd.conv3x3(x, weight, bias, relu)
            return self._finish(winograd.conv3x3(x, weight, bias), residual, relu)
        if onednn.is_supported(x, weight, bias, residual):
            return onednn.conv2d(x, weight, bias, self, residual, relu, overwrite_residual)
        return self._finish(self._conv_forward(x, weight, bias), residual, relu)

    @staticmethod
    def _finish(x: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
        if residual is not None:
            x += residual
        return x.relu_() if relu else x

    def _normalize(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm is None:
            return x
        if x.numel() == 0 and isinstance(self.norm, nn.BatchNorm2d):
            # An empty batch has no statistics. With the running ones every parameter still gets a gradient (of 0).
            norm = self.norm
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return self.norm(x)

    def _folded(self) -> _Folded | None:
        """Return weight (out, in/groups, k, k) and bias (out,) with the norm folded in; None if it cannot be.

        Where they need gradients they are computed in every call. Otherwise they are cached. The cache is valid while
        its sources are the same tensors with the same version counters, which every in-place change raises (loading
        weights, an optimizer step).
        """
        if not _is_fixed_affine(self.norm):
            return None
        norm = self.norm
        tensors = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        keep = self.weight.device.type != "cpu" if self.keep_folded is None else self.keep_folded
        needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        # Inference tensors have no version counter.
        if not keep or needs_gradient or any(t.is_inference() for t in tensors):
            return self._fold()
        sources = tuple((t, t._version) for t in tensors)
        if self._cache is None or not _same(self._cache[0], sources):
            with torch.inference_mode(False), torch.no_grad():
                self._cache = (sources, self._fold())
        return self._cache[1]

    def _fold(self) -> _Folded:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def maps_pixels_in_place(self) -> bool:
        """Return whether each pixel's output has its input's size and depends on nothing else."""
        same = self.kernel_size == self.stride == (1, 1) and self.in_channels == self.out_channels
        return same and (self.norm is None or _is_fixed_affine(self.norm))

    def fold_norm(self) -> None:
        """Replace weight and bias by those with the norm folded in, and remove the norm, if it is constant.

        The weights can then be converted to another type without rounding the norm's statistics first.
        """
        folded = self._folded()
        if folded is not None:
            weight, bias = (tensor.detach().clone() for tensor in folded)
            self.weight, self.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
            self.norm, self._cache = None, None

    def train(self, mode: bool = True) -> "ConvNorm":
        """Set the mode as ``nn.Module`` does, and free the cached weights, which training does not need."""
        self._cache = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> "ConvNorm":
        self._cache = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}  # copies and pickles don't carry derived weights


def _is_fixed_affine(norm: nn.Module | None) -> bool:
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_var is not None and norm.affine


def _same(old: _Sources, new: _Sources) -> bool:
    return all(a is b and version_a == version_b for (a, version_a), (b, version_b) in zip(old, new, strict=True))


def channels_of(shape: ShapeSpec) -> int:
    """Return the number of channels.

    Raises:
        ValueError: the component that made ``shape`` left it out.
    """
    if shape.channels is None:
        raise ValueError(f"a feature map without channels: {shape}")
    return shape.channels
