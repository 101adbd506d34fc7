"""Charts and image panels on matplotlib.

Figures are made without ``pyplot``, so that no global state is changed and no figure is leaked. Notebooks display them;
:func:`png`, :func:`pixels` and :func:`save_figure` convert them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from d2_maskrcnn.errors import printable
from d2_maskrcnn.visualization.labels import font_path

DPI = 100
IMAGE_PIXELS = 800  # length of the longer side of an image in a figure
_MAX_INCHES = 14.0
MAX_TEXT = 100  # characters of a label or title
MAX_NUMBERS = 20  # classes, above which a matrix is drawn without its numbers
MAX_CURVES = 12  # classes, above which only the best, the worst and the mean are drawn


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (8.0, 4.0)) -> tuple[Figure, list[Axes]]:
    """Make a figure of ``size`` (width, height) inches; return it with its axes, row by row."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def image_figure(count: int, size: tuple[int, int], columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Make a figure for ``count`` images of ``size`` (height, width) pixels, ``columns`` side by side."""
    height, width = (length * IMAGE_PIXELS / DPI / max(size) for length in size)
    columns = min(columns, max(count, 1))
    rows = max(-(-count // columns), 1)
    full = (max(width, 2.5) * columns, (max(height, 1.5) + 0.4) * rows)
    shrink = min(1.0, _MAX_INCHES / max(full))
    figure, axes = new_figure(rows, columns, (full[0] * shrink, full[1] * shrink))
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def show_image(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Show an image (H, W, 3) uint8 RGB without ticks."""
    axes.imshow(image)
    axes.set_axis_off()
    if title:
        axes.set_title("\n".join(map(literal, title.split("\n"))), fontsize=9)


def show_bars(axes: Axes, edges: Sequence[float], counts: Sequence[float], title: str, color: str = "C0") -> None:
    """Show a histogram of len(edges) - 1 bars; a single bar without width is drawn one wide."""
    if len(counts) == 1 and edges[0] == edges[1]:
        edges = [edges[0] - 0.5, edges[0] + 0.5]
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=color)
    axes.set_title(literal(title), fontsize=8)
    axes.tick_params(labelsize=7)


def draw_confusion(matrix: np.ndarray, names: Sequence[str], title: str = "Confusion matrix") -> Figure:
    """Draw a confusion matrix, colored by the share of each row.

    Args:
        matrix: (K + 1, K + 1) counts; the last row is detections without ground truth, the last column ground truth
            without detection.
        names: of the K classes.
    """
    labels = [literal(name) for name in (*names, "(background)")]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.45 * min(len(labels), 40)
    figure, (axes,) = new_figure(size=(side + 1, side))
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046, pad=0.02)
    if len(names) <= MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="ground truth class", title=literal(title))
    return figure


def draw_curves(recalls: np.ndarray, precisions: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw precision over recall for each class and their mean; the legend has each curve's area in percent.

    Args:
        recalls: (R,) in [0, 1].
        precisions: for each class (R,) in [0, 1].
    """
    figure, (axes,) = new_figure(size=(7, 5))
    ranked = sorted(precisions, key=lambda name: -float(precisions[name].mean()))
    shown = ranked if len(ranked) <= MAX_CURVES else ranked[: MAX_CURVES // 2] + ranked[-MAX_CURVES // 2 :]
    for name in shown:
        axes.plot(recalls, precisions[name], lw=1, label=f"{literal(name)} {100 * precisions[name].mean():.1f}")
    if precisions:
        mean = np.mean(list(precisions.values()), axis=0)
        axes.plot(recalls, mean, lw=3, color="black", label=f"mean {100 * mean.mean():.1f}")
        axes.legend(fontsize=8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=literal(title))
    return figure


def draw_class_ap(values: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the AP of each class as bars.

    Args:
        values: for each task, such as ``segm``, the AP of each class in percent.
    """
    names = list(dict.fromkeys(name for by_class in values.values() for name in by_class))
    figure, (axes,) = new_figure(size=(7, 1.5 + 0.3 * len(names)))
    height = 0.8 / max(len(values), 1)
    for number, (task, by_class) in enumerate(values.items()):
        centers = np.arange(len(names)) + number * height
        axes.barh(centers, [by_class.get(name, np.nan) for name in names], height=height, label=task)
    axes.set_yticks(np.arange(len(names)) + 0.4 - height / 2, [literal(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.legend()
    axes.set(xlabel="AP (%)", xlim=(0, 100), title="AP of each class")
    return figure


def literal(text: str) -> str:
    """Prepare a text such as a class name, so that matplotlib draws it as it is: one line, no mathtext.

    Texts longer than ``MAX_TEXT`` are shortened: matplotlib takes a minute for 100,000 characters. Legends would leave
    out a text that begins with an underscore, so a space precedes it.
    """
    shown = printable(text[: MAX_TEXT + 1])
    shown = shown if len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 3]}..."
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def pixels(figure: Figure) -> np.ndarray:
    """Render a figure as an array (H, W, 3) uint8 RGB."""
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            font = text.get_fontproperties().copy()
            font.set_file(font_path(text.get_text()))
            text.set_fontproperties(font)
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def png(figure: Figure) -> bytes:
    """Render a figure as a PNG file."""
    return encode_png(pixels(figure))


def encode_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB as a PNG of 256 colors, which is less than half the size and looks the same."""
    buffer = io.BytesIO()
    Image.fromarray(image).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()


def save_figure(figure: Figure, path: Path) -> np.ndarray:
    """Write a figure as a PNG file, making its folder; return its pixels, (3, H, W) uint8 RGB."""
    image = pixels(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return np.ascontiguousarray(image.transpose(2, 0, 1))
