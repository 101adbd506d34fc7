"""Drawing of semantic and panoptic segmentations, and the colors of classes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import matplotlib.colors as mplc
import numpy as np
import torch
from PIL import Image

from detectron2.data import Metadata
from detectron2.utils.colormap import random_color
from detectron2.utils.drawing import DrawingMixin, VisImage
from detectron2.utils.file_io import PathManager

__all__ = ["ColorMode", "SegmentDrawingMixin", "read_labels"]

_PALE_EDGE = (1.0, 1.0, 240.0 / 255)


@unique
class ColorMode(Enum):
    """Colors of instances: random (IMAGE), varied colors of their classes (SEGMENTATION), random on grayscale
    (IMAGE_BW).
    """

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class SegmentDrawingMixin(DrawingMixin):
    """Needs, in addition to :class:`DrawingMixin`, ``img`` (H, W, 3) and ``_instance_mode``."""

    img: np.ndarray
    _instance_mode: ColorMode

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Sequence[float] = _PALE_EDGE,
    ) -> VisImage:
        """Draw a map of classes: (H, W) integers, indices of ``stuff_classes``; other values are not drawn.

        Args:
            area_threshold: components with fewer pixels get no label.
        """
        values = sem_seg.cpu().numpy() if isinstance(sem_seg, torch.Tensor) else np.asarray(sem_seg)
        names = self.metadata.get("stuff_classes", [])
        labels, areas = np.unique(values, return_counts=True)
        for label in labels[np.argsort(-areas)].tolist():
            if not 0 <= label < len(names):
                continue
            self.draw_binary_mask(
                (values == label).astype(np.uint8),
                color=self._color_of("stuff_colors", label),
                edge_color=edge_color,
                text=names[label] if draw_text else None,
                alpha=alpha,
                area_threshold=area_threshold,
            )
        return self.output

    def draw_panoptic_seg(
        self,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw a panoptic segmentation: (H, W) ids, and a dict with ``id``, ``category_id``, ``isthing`` per id.

        Without ``segments_info``, ids are ``category_id * label_divisor + instance``, with the metadata's divisor.
        """
        values = panoptic_seg.cpu().numpy() if isinstance(panoptic_seg, torch.Tensor) else np.asarray(panoptic_seg)
        segments = _segments(values, self.metadata) if segments_info is None else segments_info
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(np.isin(values, [s["id"] for s in segments])))
        for thing in (False, True):  # things over stuff
            names = self.metadata.get("thing_classes" if thing else "stuff_classes", [])
            for segment in (s for s in segments if bool(s["isthing"]) == thing):
                category, mask = segment["category_id"], (values == segment["id"]).astype(np.uint8)
                text = names[category] if category < len(names) else str(category)
                color = self._color_of("thing_colors" if thing else "stuff_colors", category)
                color = self._jitter(color) if thing else color
                score = segment.get("score")
                self.draw_binary_mask(
                    mask,
                    color=color,
                    edge_color=None if thing else _PALE_EDGE,
                    text=text if score is None else f"{text} {score:.0%}",
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def _color_of(self, table: str, index: int) -> Any:
        colors = self.metadata.get(table)
        if colors is None or index >= len(colors):
            return random_color(rgb=True, maximum=1)
        return tuple(value / 255 for value in colors[index])

    def _jitter(self, color: Any) -> tuple[float, float, float]:
        """Return a color near ``color``: each channel changes by up to 0.1."""
        red, green, blue = np.clip(mplc.to_rgb(color) + np.random.uniform(-0.1, 0.1, 3), 0, 1)
        return float(red), float(green), float(blue)

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """Return the image in grayscale, except where ``mask`` (H, W) is set."""
        grey = np.repeat(self.img.astype("f4").mean(axis=2, keepdims=True), 3, axis=2)
        if mask is not None:
            grey[mask.astype(bool)] = self.img[mask.astype(bool)]
        return grey


def _segments(values: np.ndarray, metadata: Metadata) -> list[dict[str, Any]]:
    divisor = metadata.label_divisor
    things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
    found = [int(v) for v in np.unique(values) if v != -1]
    return [{"id": v, "category_id": v // divisor, "isthing": v // divisor in things} for v in found]


def read_labels(path: str) -> np.ndarray:
    """Read a map of classes, (H, W) uint8, from an image file."""
    with PathManager.open(path, "rb") as file:
        return np.asarray(Image.open(file), dtype=np.uint8)
