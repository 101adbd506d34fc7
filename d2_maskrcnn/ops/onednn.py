"""Convolution, bias, residual and ReLU in one pass over the output, by oneDNN on CPUs, without gradients.

PyTorch's compiler uses these operators of ``torch.ops.mkldnn``, but they are not public. They are compared with the
separate steps on a tiny input at first use; where they are missing or differ, :func:`is_supported` returns False.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from d2_maskrcnn.ops.tracing import is_recorded

_TYPES = (torch.float32, torch.bfloat16)


def is_supported(x: torch.Tensor, weight: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Return whether :func:`conv2d` applies: not empty, channels-last order, and no tensor needs a gradient.

    Args:
        x: (N, C, H, W). weight: (D, C / groups, k, k). others: bias and residual.
    """
    if torch.is_autocast_enabled("cpu") or is_recorded():
        return False  # first: the sizes of exported graphs are not known
    tensors = [x, weight, *(other for other in others if other is not None)]
    if any(t.device.type != "cpu" or t.dtype != x.dtype for t in tensors) or x.dtype not in _TYPES or x.numel() == 0:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    if not all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors if t.dim() == 4):
        return False
    return bool(torch.backends.mkldnn.enabled) and _works(x.dtype)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer: nn.Conv2d,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> torch.Tensor:
    """Compute ``relu(conv2d(x) + residual)``; residual and ReLU are optional.

    Args:
        x: (N, C, H, W). weight: (D, C / groups, k, k). bias: (D,). layer: gives padding, stride, dilation and groups.
        residual: (N, D, H', W').
        overwrite: whether the result may be stored in ``residual``, which saves the time of allocating memory.

    Returns:
        (N, D, H', W') in channels-last order.
    """
    geometry = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    operators: Any = torch.ops.mkldnn
    out: torch.Tensor
    if residual is not None and layer.groups > 1:  # not implemented by the operators for bfloat16
        out = conv2d(x, weight, bias, layer).add_(residual)
        return out.relu_() if relu else out
    if residual is None:
        out = operators._convolution_pointwise(x, weight, bias, *geometry, "relu" if relu else "none", [], "")
        return out
    sum_and_relu: tuple[Any, ...] = ("add", 1.0, "relu" if relu else None, [], None)
    if overwrite:
        out = operators._convolution_pointwise_.binary(residual, x, weight, bias, *geometry, *sum_and_relu)
        return out
    out = operators._convolution_pointwise.binary(x, residual, weight, bias, *geometry, *sum_and_relu)
    return out


@cache
def _works(dtype: torch.dtype) -> bool:
    """Return whether the operators exist and compute the same as the separate steps, up to rounding."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    layer = nn.utils.skip_init(nn.Conv2d, 4, 4, 3, padding=1)  # initial values would use the program's random numbers
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.inference_mode(False):
        shapes = (1, 4, 5, 6), (4, 4, 3, 3), (4,), (1, 4, 5, 6)
        x, weight, bias, residual = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
        x, weight, residual = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight, residual))
        plain = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        tolerance = 1e-4 if dtype is torch.float32 else 0.1
        try:
            results = [
                (conv2d(x, weight, bias, layer), plain),
                (conv2d(x, weight, bias, layer, relu=True), plain.relu()),
                (conv2d(x, weight, bias, layer, residual), plain + residual),
                (conv2d(x, weight, bias, layer, residual.clone(), True, overwrite=True), (plain + residual).relu()),
            ]
        except (AttributeError, RuntimeError):  # another version of PyTorch, or a processor without this type
            return False
        return all(torch.allclose(a.float(), b, rtol=tolerance, atol=tolerance) for a, b in results)
