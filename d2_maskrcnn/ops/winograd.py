"""Winograd's minimal filtering F(4x4, 3x3) on CPUs (Lavin and Gray 2016, arXiv:1509.09308).

Each tile of 4x4 outputs needs 36 products per pair of channels instead of 144. The transforms of inputs, weights and
outputs are small matrix products, so everything runs in the processor's BLAS. The interpolation points 0, 1, -1, 1/2
and -2 keep the rounding error at about three times that of a direct convolution (Barabasz et al., arXiv:1803.10986).
The gradients apply the transposed transforms in reverse order, so they need 36 products as well.

Shape shorthand: N images, C input and D output channels, T tiles.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from d2_maskrcnn.ops.tracing import is_recorded

TILE, WINDOW = 4, 6  # outputs and inputs of a tile, in each direction
MIN_CHANNELS = 128  # below, the transforms cost more than they save
MIN_TILES = 200  # below, transforming the weights does
CHUNK = 150  # tiles at a time: their intermediate values stay in the processor's caches


def _transforms() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Build the matrices of the inputs (36, 36), weights (36, 9) and outputs (16, 36) by the Toom-Cook algorithm."""
    points = np.array([0, 1, -1, 0.5, -2])
    inputs, weights, outputs = np.zeros((6, 6)), np.zeros((6, 3)), np.zeros((4, 6))
    for i, point in enumerate(points):
        others = np.delete(points, i)
        inputs[i, :5] = np.poly(others)[::-1]  # coefficients of the polynomial that is 0 at the other points
        weights[i] = point ** np.arange(3) / np.prod(point - others)
        outputs[:, i] = point ** np.arange(4)
    inputs[5], weights[5, 2], outputs[3, 5] = np.poly(points)[::-1], 1, 1  # the point at infinity
    square = [torch.from_numpy(np.kron(matrix, matrix)).float() for matrix in (inputs, weights, outputs)]
    return square[0], square[1], square[2]


_INPUTS, _WEIGHTS, _OUTPUTS = _transforms()
_INPUTS_T, _WEIGHTS_T, _OUTPUTS_T = (matrix.t().contiguous() for matrix in (_INPUTS, _WEIGHTS, _OUTPUTS))
_SUM = WINDOW + 1  # row of _OUTPUTS_T that adds all outputs of a tile: the point 1 in both directions
_IS_X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether :func:`conv3x3` applies, and is faster than a direct convolution on this processor.

    It applies to float32 in channels-last order on a CPU.

    Args:
        x: (N, C, H, W). weight: (D, C, k, k).
    """
    if not _IS_X86 or weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < MIN_CHANNELS:
        return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, weight)):
        return False
    if torch.is_autocast_enabled("cpu") or is_recorded():
        return False
    tiles = x.shape[0] * _tiles(x.shape[2]) * _tiles(x.shape[3])
    return tiles >= MIN_TILES and x.is_contiguous(memory_format=torch.channels_last)


def conv3x3(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, relu: bool = False
) -> torch.Tensor:
    """Compute ``conv2d(x, weight, bias, padding=1)``; differentiable any number of times.

    Args:
        x: (N, C, H, W) in channels-last order. weight: (D, C, 3, 3). bias: (D,). relu: whether a ReLU follows.

    Returns:
        (N, D, H, W) in channels-last order.
    """
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _convolve(x, weight, bias, relu)
    out: torch.Tensor = _Conv3x3.apply(x, weight, bias)
    return out.relu_() if relu else out


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: PyTorch's own convolution can be differentiated again
            ones, dim = [1, 1], [weight.shape[0]]
            args = (grad, x, weight, dim, ones, ones, ones, False, [0, 0], 1, needed)
            gradients: tuple[torch.Tensor | None, ...] = torch.ops.aten.convolution_backward(*args)
            return gradients
        return _gradients(grad.contiguous(memory_format=torch.channels_last), x, weight, needed)


class _Chunk(NamedTuple):
    """Rows of tiles whose intermediate values stay in the processor's caches."""

    images: slice
    row: int  # first row of tiles
    shape: tuple[int, int, int]  # images, rows and columns of tiles

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        """Select the outputs' pixels from (N, height, width, D)."""
        return x[self.images, self.row * TILE : (self.row + self.shape[1]) * TILE]


def _chunks(images: int, height: int, width: int) -> list[_Chunk]:
    rows, columns = _tiles(height), _tiles(width)
    row_step = min(rows, max(1, CHUNK // columns))
    image_step = min(images, max(1, CHUNK // (rows * columns))) if row_step == rows else 1
    return [
        _Chunk(slice(i, i + image_step), row, (min(image_step, images - i), min(row_step, rows - row), columns))
        for i in range(0, images, image_step)
        for row in range(0, rows, row_step)
    ]


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, relu: bool = False) -> torch.Tensor:
    images, channels, height, width = x.shape
    dim = len(weight)
    weights = (_WEIGHTS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, dim)
    # Whole tiles; not a view, because views that custom functions return cannot be changed in place by a ReLU.
    size = (images, dim, _tiles(height) * TILE, _tiles(width) * TILE)
    out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    chunks = _chunks(images, height, width)
    first, second = (x.new_empty(36 * math.prod(chunks[0].shape) * max(channels, dim)) for _ in range(2))
    for chunk in chunks:
        inputs = _transform_inputs(x, chunk, first, second)
        products = torch.bmm(inputs, weights, out=_part(first, 36, inputs.shape[1], dim))
        if bias is not None:
            products[_SUM] += bias  # which the transform adds to all outputs
        sums = torch.mm(_OUTPUTS, products.view(36, -1), out=_part(second, 16, products[0].numel()))
        result = sums.view(TILE, TILE, *chunk.shape, dim).permute(2, 3, 0, 4, 1, 5)
        target = chunk.pixels(out.permute(0, 2, 3, 1)).unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE))
        if relu:
            torch.clamp_min(result, 0, out=target)
        else:
            target.copy_(result)
    if size[2:] == (height, width):
        return out
    return out[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


def _transform_inputs(x: torch.Tensor, chunk: _Chunk, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the chunk's transformed windows (36, T, C), in ``second``; ``first`` is overwritten."""
    (height, width), (images, rows, columns) = x.shape[2:], chunk.shape
    top, bottom = chunk.row * TILE - 1, (chunk.row + rows) * TILE + 1
    x = x[chunk.images, :, max(top, 0) : bottom].permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, 1, columns * TILE + 1 - width, max(-top, 0), max(bottom - height, 0)))
    windows = x.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)  # (6, 6, N, rows, columns, C)
    first = _part(first, *windows.shape).copy_(windows).view(36, -1)
    return torch.mm(_INPUTS, first, out=_part(second, *first.shape)).view(36, images * rows * columns, -1)


def _gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, needed: tuple[bool, bool, bool]
) -> tuple[torch.Tensor | None, ...]:
    """Compute the gradients of :func:`conv3x3`, as far as ``needed``, from that of its result (N, D, H, W)."""
    (images, channels, height, width), dim = x.shape, len(weight)
    weights = (_WEIGHTS @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, dim, channels)
    # Tile by tile, with a margin of one pixel above and on the left.
    x_grad = x.new_zeros(images, _tiles(height) + 1, TILE, _tiles(width) + 1, TILE, channels if needed[0] else 0)
    weight_grad = x.new_zeros(36, dim, channels)
    bias_grad = x.new_zeros(dim)
    chunks = _chunks(images, height, width)
    first, second, third = (x.new_empty(36 * math.prod(chunks[0].shape) * max(channels, dim)) for _ in range(3))
    for chunk in chunks:
        outputs = _transform_output_gradients(grad, chunk, first, second)  # in the second buffer
        if needed[0]:
            products = torch.bmm(outputs, weights, out=_part(first, 36, outputs.shape[1], channels)).view(36, -1)
            windows = torch.mm(_INPUTS_T, products, out=_part(third, *products.shape))
            _add_windows(windows.view(WINDOW, WINDOW, *chunk.shape, channels), chunk, x_grad)
        if needed[1]:
            weight_grad.baddbmm_(outputs.transpose(1, 2), _transform_inputs(x, chunk, first, third))
        bias_grad += outputs[_SUM].sum(0)
    return (
        x_grad.flatten(3, 4).flatten(1, 2)[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2) if needed[0] else None,
        (_WEIGHTS_T @ weight_grad.view(36, -1)).view(3, 3, dim, channels).permute(2, 3, 0, 1) if needed[1] else None,
        bias_grad if needed[2] else None,
    )


def _transform_output_gradients(
    grad: torch.Tensor, chunk: _Chunk, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Return the transformed gradients (36, T, D) of the chunk's tiles, in ``second``; ``first`` is overwritten."""
    images, rows, columns = chunk.shape
    grad = chunk.pixels(grad.permute(0, 2, 3, 1))
    grad = F.pad(grad, (0, 0, 0, columns * TILE - grad.shape[2], 0, rows * TILE - grad.shape[1]))
    tiles = grad.unflatten(2, (-1, TILE)).unflatten(1, (-1, TILE)).permute(2, 4, 0, 1, 3, 5)
    first = _part(first, *tiles.shape).copy_(tiles).view(16, -1)
    return torch.mm(_OUTPUTS_T, first, out=_part(second, 36, first.shape[1])).view(36, images * rows * columns, -1)


def _add_windows(windows: torch.Tensor, chunk: _Chunk, total: torch.Tensor) -> None:
    """Add windows (6, 6, N, rows, columns, C) that overlap by two pixels to tiles (N, rows, 4, columns, 4, C)."""
    windows = windows.permute(2, 3, 0, 4, 1, 5)
    rows, columns = chunk.shape[1:]
    for below in (0, 1):
        for right in (0, 1):
            top, left = slice(TILE * below, TILE + 2 * below), slice(TILE * right, TILE + 2 * right)
            tiles = total[chunk.images, chunk.row + below :][:, :rows, : TILE - 2 * below]
            tiles[:, :, :, right : right + columns, : TILE - 2 * right] += windows[:, :, top, :, left]


def _part(buffer: torch.Tensor, *shape: int) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(shape)
