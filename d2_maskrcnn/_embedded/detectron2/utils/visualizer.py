"""Draw annotations and predictions on images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util

from detectron2._names import lookup
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import random_color
from detectron2.utils.drawing import VisImage
from detectron2.utils.generic_mask import GenericMask
from detectron2.utils.segment_drawing import ColorMode, SegmentDrawingMixin, read_labels

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_TYPE = 0.012  # font size relative to the image
_LEAST_TYPE = 9  # points
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_KEYPOINT_THRESHOLD = 0.05  # minimum visibility of drawn keypoints


class Visualizer(SegmentDrawingMixin):
    """Draw on an image.

    Example:
        >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8), scale=2)
        >>> visualizer.draw_box((10, 10, 40, 30)).get_image().shape
        (120, 160, 3)

    Args:
        img_rgb: (H, W, 3) RGB in [0, 255].
        metadata: names and colors of the classes (``thing_classes``, ``thing_colors``, ``stuff_classes``, ...).
        scale: size of the result relative to the image.
        instance_mode: a :class:`ColorMode`.
        font_size_scale: factor of the font size.

    Attributes:
        img: the image. output: the :class:`VisImage` to draw on.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = Metadata(name="none") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self.cpu_device = torch.device("cpu")
        height, width = self.output.height, self.output.width
        self._default_font_size = max(_TYPE * math.sqrt(height * width), _LEAST_TYPE / scale) * font_size_scale
        self._instance_mode = instance_mode
        self.keypoint_threshold = _KEYPOINT_THRESHOLD

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw a model's output.

        Args:
            predictions: with any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``, ``pred_keypoints``.
                Lazily pasted masks are drawn one by one, never as one (N, H, W) array.
            jittering: in :attr:`ColorMode.SEGMENTATION`, whether the colors of instances of a class vary.
        """
        boxes = predictions.pred_boxes if predictions.has("pred_boxes") else None
        scores = predictions.scores.tolist() if predictions.has("scores") else None
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else None
        keypoints = predictions.pred_keypoints if predictions.has("pred_keypoints") else None
        masks = self._predicted_masks(predictions)
        colors = None
        if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors") and classes is not None:
            plain = [np.array(self.metadata.thing_colors[c]) / 255 for c in classes]
            colors = [self._jitter(color) for color in plain] if jittering else plain
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(self._create_grayscale_image(_union(masks)))
        alpha = 0.65 if colors is not None else 0.5 if self._instance_mode == ColorMode.IMAGE else 0.35
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes"))
        return self.overlay_instances(
            masks=masks, boxes=boxes, labels=labels, keypoints=keypoints, assigned_colors=colors, alpha=alpha
        )

    def _predicted_masks(self, predictions: Instances) -> list[GenericMask] | None:
        height, width = self.output.height, self.output.width
        small = getattr(predictions, "box_masks", None)
        if small is not None:
            return [GenericMask(rle, height, width) for rle in small.rles()]
        if not predictions.has("pred_masks"):
            return None
        return [GenericMask(np.asarray(mask), height, width) for mask in predictions.pred_masks]

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of a dataset's record, in Detectron2's format."""
        annotations = dic.get("annotations") or []
        if annotations:
            segmentations = [a.get("segmentation") for a in annotations]
            keypoints = [a.get("keypoints") for a in annotations]
            classes = [a["category_id"] for a in annotations]
            names = self.metadata.get("thing_classes")
            colors = None
            if self._instance_mode == ColorMode.SEGMENTATION and self.metadata.get("thing_colors"):
                colors = [self._jitter(np.array(self.metadata.thing_colors[c]) / 255) for c in classes]
            self.overlay_instances(
                labels=_create_text_labels(classes, None, names, [a.get("iscrowd", 0) for a in annotations]),
                boxes=[BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
                masks=segmentations if all(s is not None for s in segmentations) else None,
                keypoints=np.array(keypoints).reshape(len(annotations), -1, 3) if all(keypoints) else None,
                assigned_colors=colors,
            )
        sem_seg = dic.get("sem_seg")
        if sem_seg is None and "sem_seg_file_name" in dic:
            sem_seg = read_labels(dic["sem_seg_file_name"])
        if sem_seg is not None:
            self.draw_sem_seg(sem_seg, area_threshold=0, alpha=0.5)
        return self.output

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw instances, large ones first.

        Args:
            boxes: :class:`Boxes` or (N, 4) XYXY. labels: N texts. keypoints: (N, K, 3) x, y, visibility.
            masks: :class:`BitMasks`, :class:`PolygonMasks`, (N, H, W), or a list of what :class:`GenericMask` accepts.
            assigned_colors: N colors in any of matplotlib's formats; None for random ones.
            alpha: opacity of the colors.

        Raises:
            ValueError: the lengths differ.
        """
        corners = None if boxes is None else self._convert_boxes(boxes)
        shapes = None if masks is None else self._convert_masks(masks)
        points = None if keypoints is None else self._convert_keypoints(keypoints)
        counts = {len(x) for x in (corners, shapes, points, labels, assigned_colors) if x is not None}
        if len(counts) > 1:
            raise ValueError(f"boxes, masks, keypoints, labels and colors have different lengths: {sorted(counts)}")
        count = counts.pop() if counts else 0
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in range(count)]
        for index in self._large_first(count, corners, shapes):
            box, shape = (None if items is None else items[index] for items in (corners, shapes))
            self._overlay_instance(box, shape, colors[index], alpha)
            if labels is not None:
                self._label(labels[index], colors[index], box, shape)
        for person in [] if points is None else points:
            self.draw_and_connect_keypoints(person)
        return self.output

    def _overlay_instance(self, box: Any, shape: GenericMask | None, color: Any, alpha: float) -> None:
        if box is not None:
            self.draw_box(box, edge_color=color)
        for polygon in [] if shape is None else shape.polygons:
            self.draw_polygon(polygon.reshape(-1, 2), color, alpha=alpha)

    def overlay_rotated_instances(
        self, boxes: Any = None, labels: Sequence[str] | None = None, assigned_colors: Sequence[Any] | None = None
    ) -> VisImage:
        """Draw (N, 5) boxes (center x, center y, width, height, degrees counterclockwise)."""
        rows = np.asarray(getattr(boxes, "tensor", boxes), dtype=np.float64).reshape(-1, 5)
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in rows]
        for index in np.argsort(-rows[:, 2] * rows[:, 3]):
            self.draw_rotated_box_with_label(
                rows[index], edge_color=colors[index], label=None if labels is None else labels[index]
            )
        return self.output

    def get_output(self) -> VisImage:
        """Return the canvas."""
        return self.output

    def _large_first(self, count: int, boxes: np.ndarray | None, masks: list[GenericMask] | None) -> list[int]:
        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        elif masks is not None:
            areas = np.array([mask.area() for mask in masks])
        else:
            return list(range(count))
        return np.argsort(-areas, kind="stable").tolist()

    def _label(self, text: str, color: Any, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """Draw a label in the top left corner of the box; above or below small boxes, which it would cover."""
        if box is None:
            if mask is None or mask.area() == 0:
                return
            box = mask.bbox()
        type_height = 1.6 * self._default_font_size  # of a line with its background, in pixels of the image
        x, y = float(box[0]), float(box[1])
        if box[3] - box[1] < 4 * type_height:
            y = y - type_height if y >= type_height else min(float(box[3]), self.output.height - type_height)
        self.draw_text(text, (x, y), color=color, horizontal_alignment="left", font_size=0.75 * self._default_font_size)

    def _convert_boxes(self, boxes: Any) -> np.ndarray:
        rows = boxes.tensor if isinstance(boxes, Boxes) else boxes
        rows = rows.detach().cpu() if isinstance(rows, torch.Tensor) else rows
        return np.asarray(rows, dtype=np.float64).reshape(-1, 4)

    def _convert_masks(self, masks_or_polygons: Any) -> list[GenericMask]:
        items = masks_or_polygons
        if isinstance(items, PolygonMasks):
            items = items.polygons
        elif isinstance(items, BitMasks):
            items = items.tensor
        items = items.detach().cpu().numpy() if isinstance(items, torch.Tensor) else items
        size = self.output.height, self.output.width
        return [item if isinstance(item, GenericMask) else GenericMask(item, *size) for item in items]

    def _convert_keypoints(self, keypoints: Any) -> np.ndarray:
        values = getattr(keypoints, "tensor", keypoints)
        return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Sequence[float] | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """Return labels such as ``person 98%``, and ``person|crowd`` for groups; None without classes and scores."""
    if classes is None and scores is None:
        return None
    count = len(classes if classes is not None else scores or [])
    labels = []
    for index in range(count):
        parts = []
        if classes is not None:
            number = classes[index]
            parts.append(class_names[number] if class_names and number < len(class_names) else str(number))
        if scores is not None:
            parts.append(f"{scores[index]:.0%}")
        labels.append(" ".join(parts) + ("|crowd" if is_crowd is not None and is_crowd[index] else ""))
    return labels


def _union(masks: list[GenericMask] | None) -> np.ndarray | None:
    if not masks:
        return None
    codes = [mask._rle or mask_util.encode(np.asfortranarray(mask.mask)) for mask in masks]
    return mask_util.decode(mask_util.merge(codes))


__getattr__ = lookup(__name__)
