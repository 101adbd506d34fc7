"""Figures of an evaluation: confusion matrix, precision-recall curves, AP of each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_NUMBERS = 20  # classes, above which a matrix is drawn without its numbers
MAX_CURVES = 12  # classes, above which only the mean and the best and worst are drawn


def draw_confusion(matrix: np.ndarray, names: Sequence[str], title: str = "Confusion matrix") -> Figure:
    """Args: matrix (K + 1, K + 1) counts, the last row and column for nothing; names of the K classes."""
    labels = [*names, "(nothing)"]
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.45 * min(len(labels), 40)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the row", fraction=0.046, pad=0.02)
    if len(names) <= MAX_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="detected as", ylabel="annotated as", title=title)
    return figure


def draw_curves(recalls: np.ndarray, precisions: Mapping[str, np.ndarray], title: str) -> Figure:
    """Args: recalls (R,) in [0, 1]; precisions: for each class (R,) in [0, 1]. The legend gives areas in percent."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    ranked = sorted(precisions, key=lambda name: -float(precisions[name].mean()))
    shown = ranked if len(ranked) <= MAX_CURVES else ranked[: MAX_CURVES // 2] + ranked[-MAX_CURVES // 2 :]
    for name in shown:
        axes.plot(recalls, precisions[name], lw=1, label=f"{name} {100 * precisions[name].mean():.1f}")
    if precisions:
        mean = np.mean(list(precisions.values()), axis=0)
        axes.plot(recalls, mean, lw=3, color="black", label=f"mean {100 * mean.mean():.1f}")
        axes.legend(fontsize=8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    return figure


def draw_class_ap(values: Mapping[str, Mapping[str, float]]) -> Figure:
    """Args: values: for each task, such as ``segm``, the AP of each class in percent."""
    names = list(dict.fromkeys(name for of_task in values.values() for name in of_task))
    figure = Figure(figsize=(7, 1.5 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / max(len(values), 1)
    for offset, (task, of_task) in enumerate(values.items()):
        places = [place + offset * height for place in range(len(names))]
        axes.barh(places, [of_task.get(name, np.nan) for name in names], height=height, label=task)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.legend()
    axes.set(xlabel="AP (%)", xlim=(0, 100), title="AP of each class")
    return figure


def save_figure(figure: Figure, path: Path) -> np.ndarray:
    """Writes a PNG file and gives its pixels: (3, H, W) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(str(path))
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1))
