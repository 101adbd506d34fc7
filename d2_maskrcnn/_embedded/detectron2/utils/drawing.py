"""Drawing primitives of a Visualizer: text, boxes, lines, circles, polygons and masks on a matplotlib axis."""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import matplotlib.colors as mplc
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle

from detectron2.utils.colormap import random_color
from detectron2.utils.generic_mask import GenericMask

__all__ = ["DrawingMixin", "VisImage"]


class VisImage:
    """An image under a matplotlib axis in units of the image's pixels.

    Args:
        img: (H, W, 3) RGB in [0, 255].
        scale: size of the result relative to ``img``.

    Attributes:
        fig, ax, canvas: matplotlib's. width, height: of ``img``, in pixels.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img, self.scale = img, scale
        self.height, self.width = img.shape[:2]
        self._setup_figure(img)

    def _setup_figure(self, img: np.ndarray) -> None:
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # The canvas drops fractions of pixels; the small excess keeps the division by dpi from dropping a whole one.
        sides = (side * self.scale + 0.01 for side in (self.width, self.height))
        self.fig.set_size_inches([side / self.dpi for side in sides])
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the background by ``img`` ((H, W, 3) RGB in [0, 255])."""
        self.ax.imshow(
            img.clip(0, 255).astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest"
        )

    def save(self, filepath: str | os.PathLike[str]) -> None:
        """Write the image; the suffix is the format (png, jpg, pdf, svg, ...)."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """Return (H * scale, W * scale, 3) uint8 RGB."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3].copy()


class DrawingMixin:
    """Needs ``output`` (a :class:`VisImage`), ``metadata``, ``keypoint_threshold`` and ``_default_font_size``."""

    output: VisImage
    metadata: Any
    keypoint_threshold: float
    _default_font_size: float

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Draw ``text`` on a dark background, its top edge at ``position`` (x, y); dark colors are lightened."""
        red, green, blue = mplc.to_rgb(color)
        if 0.3 * red + 0.6 * green + 0.1 * blue < 0.5:  # too dark for the background
            red, green, blue = (0.5 + value / 2 for value in (red, green, blue))
        self.output.ax.text(
            position[0],
            position[1],
            text,
            size=(self._default_font_size if font_size is None else font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": (0, 0, 0, 0.7), "pad": 1, "linewidth": 0},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=(red, green, blue),
            zorder=5,
            rotation=rotation,
        )
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw a box (x0, y0, x1, y1) in pixels."""
        x0, y0, x1, y1 = box_coord
        self.output.ax.add_patch(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                fill=False,
                edgecolor=edge_color,
                linewidth=self._line_width(),
                alpha=alpha,
                linestyle=line_style,
            )
        )
        return self.output

    def draw_rotated_box_with_label(
        self,
        rotated_box: Sequence[float],
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Draw a box (center x, center y, width, height, degrees counterclockwise)."""
        x, y, width, height, angle = (float(value) for value in rotated_box)
        corner = (x - width / 2, y - height / 2)
        patch = Rectangle(corner, width, height, angle=-angle, rotation_point="center", fill=False, alpha=alpha)
        patch.set(edgecolor=edge_color, linestyle=line_style, linewidth=self._line_width())
        self.output.ax.add_patch(patch)
        if label is not None:
            self.draw_text(label, patch.get_patch_transform().transform((0, 0)), color=edge_color)
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: float = 3) -> VisImage:
        """Draw a filled circle around (x, y)."""
        self.output.ax.add_patch(Circle(tuple(circle_coord), radius=radius, fill=True, color=color))
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through the points (x_data[i], y_data[i])."""
        width = self._line_width() if linewidth is None else linewidth * self.output.scale
        limits = self.output.ax.get_xlim(), self.output.ax.get_ylim()
        self.output.ax.plot(x_data, y_data, linewidth=width, color=color, linestyle=linestyle)
        self.output.ax.set(xlim=limits[0], ylim=limits[1])  # a line that exceeds the image must not shift it
        return self.output

    def draw_polygon(self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon, (K, 2) x and y; its edge has the same color by default."""
        edge_color = color if edge_color is None else edge_color
        self.output.ax.add_patch(
            Polygon(
                np.asarray(segment),
                fill=True,
                facecolor=(*mplc.to_rgb(color), alpha),
                edgecolor=(*mplc.to_rgb(edge_color), 1),
                linewidth=self._line_width() / 2,
            )
        )
        return self.output

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float | None = 10,
    ) -> VisImage:
        """Draw an (H, W) mask.

        Args:
            color: None for a random one. text: drawn in the largest component.
            edge_color: of the contours; masks with holes are drawn without contours.
            area_threshold: components with fewer pixels are omitted, unless the mask has holes.
        """
        color = random_color(rgb=True, maximum=1) if color is None else color
        mask = GenericMask(np.asarray(binary_mask), self.output.height, self.output.width)
        rings = [polygon.reshape(-1, 2) for polygon in mask.polygons]
        if mask.has_holes:
            self.draw_soft_mask(mask.mask, color, alpha=alpha)
        else:
            rings = [ring for ring in rings if _ring_area(ring) >= (area_threshold or 0)]
            for ring in rings:
                self.draw_polygon(ring, color, edge_color, alpha)
        if not rings:
            return self.output
        if text is not None:
            lighter = self._change_color_brightness(color, brightness_factor=0.7)
            self._draw_text_in_mask(np.asarray(binary_mask), text, lighter)
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Draw an (H, W) mask of values in [0, 1]; the opacity of a pixel is its value times ``alpha``."""
        color = random_color(rgb=True, maximum=1) if color is None else color
        layer = np.empty((*soft_mask.shape, 4), dtype=np.float32)
        layer[:, :, :3] = mplc.to_rgb(color)
        layer[:, :, 3] = np.asarray(soft_mask) * alpha
        self.output.ax.imshow(layer, extent=(0, self.output.width, self.output.height, 0))
        if text is not None:
            lighter = self._change_color_brightness(color, brightness_factor=0.7)
            self._draw_text_in_mask((np.asarray(soft_mask) > 0.5).astype(np.uint8), text, lighter)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: np.ndarray) -> VisImage:
        """Draw the keypoints of one instance, (K, 3) x, y, visibility, and the lines between them.

        The lines are defined by the metadata's ``keypoint_names`` and ``keypoint_connection_rules`` (name, name,
        color).
        """
        names = self.metadata.get("keypoint_names") or []
        visible: dict[str, tuple[float, float]] = {}
        for index, (x, y, seen) in enumerate(np.asarray(keypoints)):
            if seen > self.keypoint_threshold:
                self.draw_circle((x, y), color=(1.0, 1.0, 240.0 / 255))
                if index < len(names):
                    visible[names[index]] = (x, y)
        for start, end, color in self.metadata.get("keypoint_connection_rules") or []:
            if start in visible and end in visible:
                (x0, y0), (x1, y1) = visible[start], visible[end]
                self.draw_line((x0, x1), (y0, y1), color=tuple(value / 255 for value in color))
        return self.output

    def _line_width(self) -> float:
        """Return the line width of boxes in points, which grows with the image and the scale."""
        return max(1.0, math.sqrt(self.output.width * self.output.height) / 500) * self.output.scale

    def _draw_text_in_mask(self, binary_mask: np.ndarray, text: str, color: Any) -> None:
        """Draw ``text`` in the middle of the mask's largest component."""
        count, pieces = cv2.connectedComponents(binary_mask.astype(np.uint8))
        if count > 1:
            largest = 1 + int(np.bincount(pieces.reshape(-1), minlength=count)[1:].argmax())
            # The pixel farthest from the border: the center of a ring would be in its hole.
            depth = cv2.distanceTransform((pieces == largest).astype(np.uint8), cv2.DIST_L2, 3)
            y, x = np.unravel_index(int(depth.argmax()), depth.shape)
            self.draw_text(text, (float(x), float(y)), color=color)

    def _change_color_brightness(self, color: Any, brightness_factor: float) -> tuple[float, float, float]:
        """Return a lighter color for a factor up to 1, a darker one for a factor down to -1.

        Raises:
            ValueError: the factor is not in [-1, 1].
        """
        if not -1 <= brightness_factor <= 1:
            raise ValueError(f"brightness_factor must be in [-1, 1], got {brightness_factor}")
        hue, light, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
        return colorsys.hls_to_rgb(hue, float(np.clip(light + brightness_factor * light, 0, 1)), saturation)


def _ring_area(ring: np.ndarray) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
