"""Matplotlib without its global state: figures that no window and no ``pyplot`` knows of, so that none can leak.

They are shown by notebooks, written as PNG and turned into arrays for TensorBoard.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
IMAGE_INCHES = 8.0  # the longer side of an image in a figure
MAPS = {"heat": "inferno", "probability": "viridis"}


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (8.0, 4.0)) -> "tuple[Figure, list[Axes]]":
    """A figure of ``size`` (width, height) inches and its axes, row by row.

    Raises:
        UserError: matplotlib is not installed; the message names the extra that brings it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Figures need matplotlib, which is not installed: pip install 'd2_maskrcnn[inspection]' "
            "(or -e '.[inspection]' in a checkout)"
        ) from error
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def image_figure(count: int, size: tuple[int, int], columns: int = 2) -> "tuple[Figure, list[Axes]]":
    """A figure for ``count`` images of ``size`` (height, width) pixels side by side."""
    height, width = size
    columns = min(columns, max(count, 1))
    rows = max(-(-count // columns), 1)
    scale = IMAGE_INCHES / max(height, width)
    wanted = (max(width * scale, 2.5) * columns, (max(height * scale, 1.5) + 0.4) * rows)
    shrink = min(1.0, 14.0 / max(wanted))
    figure, axes = new_figure(rows, columns, (wanted[0] * shrink, wanted[1] * shrink))
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def show_image(axes: "Axes", image: np.ndarray, title: str = "", frame: tuple[int, int] | None = None) -> None:
    """Shows (H, W, 3) uint8 RGB, without ticks, over the coordinates of a frame of (height, width) pixels."""
    height, width = frame or image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=9)


def histogram(values: np.ndarray, bins: int) -> tuple[list[float], list[int]]:
    """Edges and counts of finite values from the lowest to the highest: ``bins`` bins, or one where they are equal,
    or too close together for the precision that they have.
    """
    if values.size == 0:
        return [0.0, 0.0], [0]
    low, high = values.min(), values.max()
    if (high - low) / bins <= 2 * np.spacing(max(abs(low), abs(high))):
        return [float(low), float(high)], [values.size]
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return edges.astype(float).tolist(), counts.tolist()


def spread(values: torch.Tensor) -> float:
    """Standard deviation of float32 values, summed in float64 without a copy in float64 of all of them."""
    centred = values - values.mean(dtype=torch.float64).float()
    return math.sqrt(float(centred.square_().mean(dtype=torch.float64)))


def show_bars(axes: "Axes", edges: Sequence[float], counts: Sequence[float], title: str, colour: str = "C0") -> None:
    """A histogram of len(edges) - 1 bars; a single one without width is made one wide."""
    if len(counts) == 1 and edges[0] == edges[1]:
        edges = [edges[0] - 0.5, edges[0] + 0.5]
    lefts = np.asarray(edges[:-1], dtype=float)
    widths = np.diff(np.asarray(edges, dtype=float))
    axes.bar(lefts, counts, width=widths, align="edge", color=colour)
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=7)


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    return encode_png(pixels(figure))


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a PNG file with a palette of 256 colours: less than half the bytes, and no eye sees it."""
    buffer = io.BytesIO()
    Image.fromarray(image).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def pixels(figure: "Figure") -> np.ndarray:
    """The figure as an array (H, W, 3) uint8 RGB."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
