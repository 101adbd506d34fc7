"""Scenes: an image with layers of boxes, masks and lines that can be shown one by one.

The inspection builds them; a web page shows them as SVG, everything else as an array from :func:`raster`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from matplotlib.figure import Figure

from d2_maskrcnn.visualization.annotator import DASHED, MASK_ALPHA, dashes, font_size, line_thickness
from d2_maskrcnn.visualization.figures import IMAGE_PIXELS, image_figure, show_image
from d2_maskrcnn.visualization.labels import LabelPainter
from d2_maskrcnn.visualization.palette import Color, class_color

_DASHES = {"dotted": (1, 3), "dashed": DASHED}
_PIXELATED = 3  # scale from which on enlarged images show their pixels


@dataclass
class Mark:
    """One shape of a layer, in pixels of the scene's frame.

    Attributes:
        points: closed polygons, each (n, 2) of x, y; with ``line`` open lines.
        text: description, shown when the mouse is over the shape.
        label: short text drawn beside the shape, or "".
        class_index: decides the color, and lets the shape be hidden with its class.
        line: ``points`` are open lines.
    """

    points: list[np.ndarray]
    text: str = ""
    label: str = ""
    class_index: int | None = None
    line: bool = False


@dataclass
class Layer:
    """Marks that are shown and hidden together.

    Attributes:
        name, marks: the title and the shapes.
        color: of all marks; None uses each mark's class color.
        style: ``solid``, ``dotted`` or ``dashed`` lines.
        filled: polygons are filled half transparently.
        shown: visible at first.
        total: number of shapes that ``marks`` is a selection of, or None for all.
        backdrop: shown together with every other layer when layers are drawn one by one.
    """

    name: str
    marks: list[Mark]
    color: Color | None = None
    style: str = "solid"
    filled: bool = False
    shown: bool = True
    total: int | None = None
    backdrop: bool = False

    @property
    def title(self) -> str:
        """Name and number of marks, such as ``proposals (40 of 1000)``."""
        number = len(self.marks)
        return f"{self.name} ({number})" if self.total in (None, number) else f"{self.name} ({number} of {self.total})"

    def color_of(self, mark: Mark) -> Color:
        """Return the color of one of the marks."""
        return class_color(mark.class_index) if self.color is None else self.color


@dataclass
class Scene:
    """An image and its layers, the last layer on top.

    Attributes:
        name, title: for file names and for people.
        image: (H, W, 3) uint8 RGB, stretched over the frame.
        frame: (height, width) of the coordinate system, in pixels.
        layers, class_names: what is drawn, and the names of the marks' classes.
    """

    name: str
    title: str
    image: np.ndarray
    frame: tuple[int, int]
    layers: list[Layer] = field(default_factory=list)
    class_names: Sequence[str] = ()

    def classes(self) -> list[int]:
        """Return the classes of all marks in ascending order."""
        classes = {mark.class_index for layer in self.layers for mark in layer.marks}
        return sorted(index for index in classes if index is not None)


def box_points(box: Iterable[float]) -> np.ndarray:
    """Return the corners of an XYXY box, (4, 2)."""
    x0, y0, x1, y1 = (float(value) for value in box)
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def box_marks(boxes: np.ndarray, texts: Sequence[str] = (), classes: Sequence[int] | None = None) -> list[Mark]:
    """Make one mark per XYXY box of (n, 4); boxes beyond the end of ``texts`` get no text."""
    texts = [*texts, *[""] * len(boxes)]
    return [
        Mark([box_points(box)], texts[i], class_index=None if classes is None else int(classes[i]))
        for i, box in enumerate(boxes)
    ]


def draw_scene(scene: Scene, split: bool = False) -> Figure:
    """Draw a scene as a matplotlib figure.

    Args:
        split: draw one image per layer that has marks, each with the backdrops, rather than all shown layers together.
    """
    backdrops = [layer for layer in scene.layers if layer.backdrop]
    groups = [[layer, *backdrops] for layer in scene.layers if layer.marks and not layer.backdrop] if split else []
    groups = groups or [[layer for layer in scene.layers if layer.shown]]
    figure, axes = image_figure(len(groups), scene.frame)
    for panel, group in zip(axes, groups, strict=True):
        layers = [replace(layer, shown=True) for layer in group]
        image = raster(replace(scene, layers=layers), IMAGE_PIXELS)
        show_image(panel, image, "\n".join(layer.title for layer in group) or scene.title)
    return figure


def raster(scene: Scene, side: int = 512) -> np.ndarray:
    """Draw a scene's shown layers as an array (H, W, 3) uint8 RGB, in a few milliseconds.

    Args:
        side: length of the longer side in pixels.
    """
    scale = side / max(scene.frame)
    height, width = (max(round(length * scale), 1) for length in scene.frame)
    enlarged = height >= _PIXELATED * scene.image.shape[0]
    interpolation = cv2.INTER_NEAREST if enlarged else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(scene.image[..., ::-1]), (width, height), interpolation=interpolation)
    shown = [layer for layer in scene.layers if layer.shown]
    for layer in shown:
        image = _draw_layer(image, layer, scale)
    _draw_labels(image, shown, scale)
    return np.ascontiguousarray(image[..., ::-1])


def _draw_layer(image: np.ndarray, layer: Layer, scale: float) -> np.ndarray:
    """Draw a layer into a BGR image of ``scale`` pixels per pixel of the frame."""
    thickness = line_thickness((image.shape[0], image.shape[1]))
    fill = image.copy() if layer.filled else image
    for mark in layer.marks:
        color = layer.color_of(mark)[::-1]
        points = [np.round(polygon * scale).astype(np.int32) for polygon in mark.points]
        if layer.filled and points:
            cv2.fillPoly(fill, points, color)
        if layer.style == "solid" or mark.line:
            cv2.polylines(image, points, not mark.line, color, thickness if mark.line else 2 * thickness)
        else:
            lines = [line for polygon in points for line in dashes(polygon, *_DASHES[layer.style], thickness)]
            cv2.polylines(image, lines, False, color, thickness)
    if layer.filled:
        image = cv2.addWeighted(fill, MASK_ALPHA, image, 1 - MASK_ALPHA, 0)
    return image


def _draw_labels(image: np.ndarray, layers: Sequence[Layer], scale: float) -> None:
    """Draw the labels of all layers into a BGR image, in place, so that those of one layer do not hide another's."""
    marks = [(m, layer.color_of(m)) for layer in layers for m in layer.marks if m.label and m.points]
    boxes = np.array([[*m.points[0].min(axis=0), *m.points[0].max(axis=0)] for m, _ in marks]).reshape(-1, 4) * scale
    painter = LabelPainter(font_size((image.shape[0], image.shape[1])))
    painter.draw(image, [mark.label for mark, _ in marks], boxes, [color for _, color in marks])
