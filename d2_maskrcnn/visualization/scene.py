"""An image with layers of boxes, outlines and lines over it: drawn by matplotlib as well as by the web page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import numpy as np

from d2_maskrcnn.evaluation.prediction_images import COLOURS
from d2_maskrcnn.visualization.figures import image_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RASTER_DASHES = {"dotted": (1, 3), "dashed": (6, 4)}  # pixels of line and of gap
DASHES = {"solid": "", "dotted": "1.5 3", "dashed": "6 4"}


@dataclass
class Mark:
    """One thing in a layer; coordinates are pixels of the scene's frame.

    points: one or more closed outlines, each (n, 2) of x, y; a single open line where ``line``. text: what it is, in
    words. label: short text written beside it, or "". class_index: picks its colour and lets it be switched off with
    its class.
    """

    points: list[np.ndarray]
    text: str = ""
    label: str = ""
    class_index: int | None = None
    line: bool = False


@dataclass
class Layer:
    """Marks that are switched on and off together.

    colour: of all its marks (``#rrggbb``); None takes each mark's class. filled: outlines are filled, half transparent.
    total: of how many the marks are a part, if not all are drawn. backdrop: for comparison with every other layer.
    """

    name: str
    marks: list[Mark]
    colour: str | None = None
    style: str = "solid"
    filled: bool = False
    shown: bool = True
    total: int | None = None
    backdrop: bool = False

    @property
    def title(self) -> str:
        """Name and number of marks."""
        part = (
            f"{len(self.marks)} of {self.total}" if self.total not in (None, len(self.marks)) else f"{len(self.marks)}"
        )
        return f"{self.name} ({part})"


@dataclass
class Scene:
    """An image and its layers, the last one on top.

    image: (H, W, 3) uint8 RGB, stretched over the frame. frame: (height, width) of the coordinates, in pixels.
    """

    name: str
    title: str
    image: np.ndarray
    frame: tuple[int, int]
    layers: list[Layer] = field(default_factory=list)
    class_names: Sequence[str] = ()

    def classes(self) -> list[int]:
        """The classes that occur, in ascending order."""
        return sorted(
            {mark.class_index for layer in self.layers for mark in layer.marks if mark.class_index is not None}
        )


def class_colour(index: int | None) -> str:
    """``#rrggbb`` of a class."""
    return COLOURS[(index or 0) % len(COLOURS)]


def box_points(box: Iterable[float]) -> np.ndarray:
    """(4, 2) corners of an XYXY box."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def box_marks(boxes: np.ndarray, texts: Sequence[str] = (), classes: Sequence[int] | None = None) -> list[Mark]:
    """One mark for each XYXY box (n, 4)."""
    return [
        Mark(
            [box_points(box)],
            texts[i] if i < len(texts) else "",
            class_index=None if classes is None else int(classes[i]),
        )
        for i, box in enumerate(boxes)
    ]


def draw_scene(scene: Scene, split: bool = False) -> "Figure":
    """The scene as a matplotlib figure: all shown layers over one image or, with ``split``, one image for each that
    has marks, together with the backdrops.
    """
    backdrops = [layer for layer in scene.layers if layer.backdrop]
    groups = [[layer, *backdrops] for layer in scene.layers if layer.marks and not layer.backdrop] if split else []
    groups = groups or [[layer for layer in scene.layers if layer.shown]]
    figure, axes = image_figure(len(groups), scene.frame)
    for panel, group in zip(axes, groups, strict=True):
        show_image(panel, scene.image, "\n".join(layer.title for layer in group) or scene.title, scene.frame)
        for layer in group:
            _draw_layer(panel, layer)
    return figure


def _draw_layer(axes: "Axes", layer: Layer) -> None:
    from matplotlib.collections import LineCollection, PolyCollection

    styles = {"solid": "-", "dotted": ":", "dashed": "--"}
    outlines = [points for mark in layer.marks for points in mark.points if not mark.line]
    colours = [_colour(layer, mark) for mark in layer.marks for _ in mark.points if not mark.line]
    if outlines:
        faces = [colour + "73" for colour in colours] if layer.filled else "none"
        axes.add_collection(
            PolyCollection(
                outlines, facecolors=faces, edgecolors=colours, linewidths=1.2, linestyles=styles[layer.style]
            )
        )
    lines = [points for mark in layer.marks for points in mark.points if mark.line]
    if lines:
        colours = [_colour(layer, mark) for mark in layer.marks if mark.line]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.8))
    for mark in layer.marks:
        if mark.label and mark.points:
            x, y = mark.points[0].min(axis=0)
            axes.text(
                x, y, mark.label, fontsize=6, color="black", va="bottom", clip_on=True,
                bbox={"facecolor": _colour(layer, mark), "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip


def _colour(layer: Layer, mark: Mark) -> str:
    return layer.colour or class_colour(mark.class_index)


def raster(scene: Scene, side: int = 512) -> np.ndarray:
    """The scene with its shown layers as an array (H, W, 3) uint8 RGB, in a few milliseconds and without matplotlib.

    Args:
        side: pixels of the longer side, at least; bigger images keep their size.
    """
    scale = max(side / max(scene.frame), max(scene.image.shape[:2]) / max(scene.frame))
    height, width = (round(value * scale) for value in scene.frame)
    image = cv2.resize(np.ascontiguousarray(scene.image), (width, height), interpolation=cv2.INTER_LINEAR)
    for layer in scene.layers:
        if layer.shown:
            image = _raster_layer(image, layer, scale)
    return image


def _raster_layer(image: np.ndarray, layer: Layer, scale: float) -> np.ndarray:
    fill = image.copy() if layer.filled else image
    for mark in layer.marks:
        colour = _rgb(_colour(layer, mark))
        points = [np.round(outline * scale).astype(np.int32) for outline in mark.points]
        if layer.filled and points:
            cv2.fillPoly(fill, points, colour)
        if layer.style == "solid" or mark.line:
            cv2.polylines(image, points, not mark.line, colour, 1 if mark.line else 2)
        else:
            on, off = _RASTER_DASHES[layer.style]
            cv2.polylines(image, [dash for outline in points for dash in _dashes(outline, on, off)], False, colour, 1)
        if mark.label and points:
            x, y = (int(value) for value in points[0].min(axis=0))
            place = (x, max(y - 4, 12))
            for ink, width in (((0, 0, 0), 3), (colour, 1)):
                cv2.putText(image, mark.label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, ink, width, cv2.LINE_AA)
    return cv2.addWeighted(fill, 0.45, image, 0.55, 0) if layer.filled else image


def _dashes(outline: np.ndarray, on: float, off: float) -> list[np.ndarray]:
    """Lines (2, 2) int32 of ``on`` pixels with gaps of ``off`` along the edges of a closed outline (n, 2)."""
    dashes = []
    for start, end in zip(outline.astype(float), np.roll(outline, -1, axis=0).astype(float), strict=True):
        length = float(np.linalg.norm(end - start))
        begins = np.arange(0, length, on + off)[:, None]
        ends = np.minimum(begins + on, length)
        both = np.stack([begins, ends], axis=1) / max(length, 1.0)  # (m, 2, 1) shares of the edge
        dashes += list(np.round(start + both * (end - start)).astype(np.int32))
    return dashes


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
