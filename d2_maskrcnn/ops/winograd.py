"""Winograd's minimal filtering F(4x4, 3x3) for inference on CPUs (Lavin and Gray 2016, arXiv:1509.09308).

Each tile of 4x4 outputs needs 36 products per pair of channels instead of 144. The transforms of inputs, weights and
outputs are small matrix products, so everything runs in the processor's BLAS. The interpolation points 0, 1, -1, 1/2
and -2 keep the rounding error at about three times that of a direct convolution (Barabasz et al., arXiv:1803.10986).

Shape shorthand: N images, C input and D output channels, T tiles.
"""

import numpy as np
import torch
import torch.nn.functional as F

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
_IS_X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether :func:`conv3x3` applies, and is faster than a direct convolution on this processor.

    It applies to float32 in channels-last order on a CPU, where no gradient is needed.

    Args:
        x: (N, C, H, W). weight: (D, C, k, k).
    """
    if not _IS_X86 or weight.shape[2:] != (3, 3) or min(weight.shape[:2]) < MIN_CHANNELS or torch.is_grad_enabled():
        return False
    if any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (x, weight)):
        return False
    if torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    tiles = x.shape[0] * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
    return tiles >= MIN_TILES and x.is_contiguous(memory_format=torch.channels_last)


def conv3x3(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Compute ``conv2d(x, weight, bias, padding=1)``.

    Args:
        x: (N, C, H, W) in channels-last order. weight: (D, C, 3, 3). bias: (D,).

    Returns:
        (N, D, H, W) in channels-last order.
    """
    images, channels, height, width = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    weights = (_WEIGHTS @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, channels, -1)
    out = x.new_empty(images, rows * TILE, columns * TILE, weights.shape[2])
    row_step = min(rows, max(1, CHUNK // columns))
    image_step = min(images, max(1, CHUNK // (rows * columns))) if row_step == rows else 1
    size = 36 * image_step * row_step * columns * max(channels, weights.shape[2])
    buffers = x.new_empty(size), x.new_empty(size)
    for image in range(0, images, image_step):
        for row in range(0, rows, row_step):
            part = out[image : image + image_step, row * TILE : (row + row_step) * TILE]
            windows = _windows(x[image : image + image_step], row, min(row_step, rows - row), columns)
            _convolve(windows, weights, bias, part, buffers)
    return out[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _windows(x: torch.Tensor, row: int, rows: int, columns: int) -> torch.Tensor:
    """Return the windows (6, 6, N, rows, columns, C) of ``rows`` rows of tiles from ``row`` on, zero-padded."""
    height, width = x.shape[2:]
    top, bottom = row * TILE - 1, (row + rows) * TILE + 1
    x = x[:, :, max(top, 0) : bottom].permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, 1, columns * TILE + 1 - width, max(-top, 0), max(bottom - height, 0)))
    return x.unfold(1, WINDOW, TILE).unfold(2, WINDOW, TILE).permute(4, 5, 0, 1, 2, 3)


def _convolve(
    windows: torch.Tensor,
    weights: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    buffers: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """Write the tiles of ``windows`` (6, 6, N, rows, columns, C) to ``out`` (N, rows * 4, columns * 4, D)."""
    images, rows, columns, channels = windows.shape[2:]
    tiles, dim = images * rows * columns, weights.shape[2]
    first, second = (buffer[: 36 * tiles * channels] for buffer in buffers)
    first.view(windows.shape).copy_(windows)
    torch.mm(_INPUTS, first.view(36, -1), out=second.view(36, -1))
    products = buffers[0][: 36 * tiles * dim].view(36, tiles, dim)
    torch.bmm(second.view(36, tiles, channels), weights, out=products)
    sums = buffers[1][: 16 * tiles * dim].view(16, -1)
    torch.mm(_OUTPUTS, products.view(36, -1), out=sums)
    result = sums.view(TILE, TILE, images, rows, columns, dim).permute(2, 3, 0, 4, 1, 5)
    target = out.view(images, rows, TILE, columns, TILE, dim)
    if bias is None:
        target.copy_(result)
    else:
        torch.add(result, bias, out=target)
