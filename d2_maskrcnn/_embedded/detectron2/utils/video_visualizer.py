"""Draw predictions on the frames of a video, with colors that persist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util

from detectron2._names import lookup
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap, random_color
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer, _create_text_labels, _union

__all__ = ["VideoVisualizer"]

_SAME_MASK, _SAME_BOX = (
    0.45,
    0.55,
)  # IoU with a mask or box of the previous frame from which on it is the same object
_PATIENCE = 10  # frames for which the color of an undetected object is kept


@dataclass
class _Known:
    label: int
    shape: Any  # run-length encoding, or XYWH box
    color: np.ndarray
    frames_left: int


class VideoVisualizer:
    """Draw one frame after the other.

    Args:
        metadata: names and colors of the classes.
        instance_mode: :attr:`ColorMode.IMAGE` or :attr:`ColorMode.IMAGE_BW`.

    Raises:
        ValueError: another mode is given.
    """

    def __init__(self, metadata: Metadata, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        if instance_mode not in (ColorMode.IMAGE, ColorMode.IMAGE_BW):
            raise ValueError(f"instance_mode is {instance_mode}; VideoVisualizer supports IMAGE and IMAGE_BW")
        self.metadata = metadata
        self._instance_mode = instance_mode
        self._known: list[_Known] = []
        self._colors_of_ids: dict[int, np.ndarray] = {}

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw a model's output for one frame.

        Args:
            frame: (H, W, 3) RGB in [0, 255].
            predictions: with any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``, ``pred_keypoints``.
                Colors follow the field ``ID`` if there is one, else the overlaps with the previous frame.
        """
        visualizer = Visualizer(frame, self.metadata)
        if len(predictions) == 0:
            return visualizer.output
        boxes = predictions.pred_boxes.tensor.cpu().numpy() if predictions.has("pred_boxes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        masks = visualizer._predicted_masks(predictions)
        colors = self._colors(predictions, classes or [0] * len(predictions), boxes, masks)
        if self._instance_mode == ColorMode.IMAGE_BW:
            visualizer.output.reset_image(visualizer._create_grayscale_image(_union(masks)))
        return visualizer.overlay_instances(
            boxes=boxes if masks is None else None,  # masks show more than boxes, and cover less of the frame
            masks=masks,
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes")),
            keypoints=predictions.pred_keypoints if predictions.has("pred_keypoints") else None,
            assigned_colors=colors,
            alpha=0.3 if self._instance_mode == ColorMode.IMAGE_BW else 0.5,
        )

    def draw_sem_seg(
        self, frame: np.ndarray, sem_seg: torch.Tensor | np.ndarray, area_threshold: float | None = None
    ) -> VisImage:
        """Draw a map of classes, (H, W); see :meth:`Visualizer.draw_sem_seg`."""
        return Visualizer(frame, self.metadata).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: torch.Tensor | np.ndarray,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw a panoptic segmentation; see :meth:`Visualizer.draw_panoptic_seg`."""
        visualizer = Visualizer(frame, self.metadata, instance_mode=self._instance_mode)
        return visualizer.draw_panoptic_seg(panoptic_seg, segments_info, area_threshold=area_threshold, alpha=alpha)

    def _colors(
        self, predictions: Instances, classes: list[int], boxes: np.ndarray | None, masks: list[GenericMask] | None
    ) -> list[np.ndarray]:
        if predictions.has("COLOR"):
            return list(predictions.COLOR)
        if predictions.has("ID"):
            return [self._color_of_id(int(number)) for number in predictions.ID]
        shapes, least = self._shapes(boxes, masks)
        if shapes is None:
            return [random_color(rgb=True, maximum=1) for _ in classes]
        return self._colors_by_overlap(classes, shapes, least)

    def _color_of_id(self, number: int) -> np.ndarray:
        if number not in self._colors_of_ids:
            table = colormap(rgb=True, maximum=1)
            self._colors_of_ids[number] = table[len(self._colors_of_ids) % len(table)]
        return self._colors_of_ids[number]

    @staticmethod
    def _shapes(boxes: np.ndarray | None, masks: list[GenericMask] | None) -> tuple[list[Any] | None, float]:
        if masks is not None:
            return [m._rle or mask_util.encode(np.asfortranarray(m.mask)) for m in masks], _SAME_MASK
        if boxes is not None:
            return [np.concatenate((box[:2], box[2:] - box[:2])).astype(np.float64) for box in boxes], _SAME_BOX
        return None, 0.0

    def _colors_by_overlap(self, classes: list[int], shapes: list[Any], least: float) -> list[np.ndarray]:
        """Assign to each object the color of the known one of its class that it overlaps most, the best pairs first."""
        known = [item for item in self._known if isinstance(item.shape, type(shapes[0]))]
        overlap = np.zeros((len(known), len(shapes)))
        if known:
            old, new = [item.shape for item in known], shapes
            if isinstance(new[0], np.ndarray):
                old, new = np.stack(old), np.stack(new)
            overlap = np.array(mask_util.iou(old, new, [0] * len(shapes))).reshape(overlap.shape)
            overlap[np.array([item.label for item in known])[:, None] != np.array(classes)] = 0
        owner: dict[int, int] = {}
        while overlap.size and overlap.max() > least:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            owner[int(column)] = int(row)
            overlap[row] = overlap[:, column] = 0
        found = [
            _Known(label, shape, known[owner[i]].color if i in owner else random_color(rgb=True, maximum=1), _PATIENCE)
            for i, (label, shape) in enumerate(zip(classes, shapes, strict=True))
        ]
        lost = [item for row, item in enumerate(known) if row not in owner.values()]
        for item in lost:
            item.frames_left -= 1
        self._known = found + [item for item in lost if item.frames_left > 0]
        return [item.color for item in found]


__getattr__ = lookup(__name__)
