"""Drawing annotations and predictions into images, for looking at and for print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, unique
from typing import Any

import matplotlib.colors as mplc
import numpy as np
import torch
from pycocotools import mask as mask_util

from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.colormap import random_color
from detectron2.utils.drawing import DrawingMixin
from detectron2.utils.file_io import PathManager
from detectron2.utils.generic_mask import GenericMask
from detectron2.utils.vis_image import VisImage

__all__ = ["ColorMode", "GenericMask", "VisImage", "Visualizer"]

_TYPE = 0.012  # size of the type as a part of the image's
_LEAST_TYPE = 9  # points
_OFF_WHITE = (1.0, 1.0, 240.0 / 255)
_KEYPOINT_THRESHOLD = 0.05  # visibility below which a keypoint is not drawn


@unique
class ColorMode(Enum):
    """Which colours instances get: random ones; those of their classes, a little varied; random ones on grey."""

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class Visualizer(DrawingMixin):
    """Draws into one image.

    Example:
        >>> visualizer = Visualizer(np.zeros((60, 80, 3), np.uint8), scale=2)
        >>> visualizer.draw_box((10, 10, 40, 30)).get_image().shape
        (120, 160, 3)

    Args:
        img_rgb: (H, W, 3) RGB in [0, 255].
        metadata: names and colours of the classes (``thing_classes``, ``thing_colors``, ``stuff_classes``, ...).
        scale: how much larger the result is than the image.
        instance_mode: a :class:`ColorMode`.
        font_size_scale: factor on the size of the type.

    Attributes:
        img: the image. output: the :class:`VisImage` that is drawn on.
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
        """Draws a model's output.

        Args:
            predictions: with any of ``pred_boxes``, ``pred_classes``, ``scores``, ``pred_masks``, ``pred_keypoints``.
                Masks that are pasted only when asked for are drawn one by one, never as one (N, H, W) array.
            jittering: in :attr:`ColorMode.SEGMENTATION`, whether instances of a class differ a little in colour.
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

    def draw_sem_seg(
        self,
        sem_seg: torch.Tensor | np.ndarray,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Sequence[float] = _OFF_WHITE,
    ) -> VisImage:
        """Draws a map of classes: (H, W) whole numbers into ``stuff_classes``; other numbers are left as they are.

        Args:
            area_threshold: pieces of fewer pixels get no label.
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
        """Draws a panoptic segmentation: (H, W) ids, and a dict with ``id``, ``category_id``, ``isthing`` for each id.

        Without ``segments_info``, ids are ``category_id * label_divisor + instance`` as in the metadata.
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
                    edge_color=None if thing else _OFF_WHITE,
                    text=text if score is None else f"{text} {score:.0%}",
                    alpha=alpha,
                    area_threshold=area_threshold,
                )
        return self.output

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draws the annotations of a dataset's record, in Detectron2's format."""
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
            sem_seg = _read_labels(dic["sem_seg_file_name"])
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
        """Draws instances, large ones first.

        Args:
            boxes: :class:`Boxes` or (N, 4) XYXY. labels: N texts. keypoints: (N, K, 3) x, y, visibility.
            masks: :class:`BitMasks`, :class:`PolygonMasks`, (N, H, W), or a list of what :class:`GenericMask` takes.
            assigned_colors: N colours in any of matplotlib's forms; random ones if None.
            alpha: how much of the colours covers the image.

        Raises:
            ValueError: these are not equally many.
        """
        corners = None if boxes is None else self._convert_boxes(boxes)
        shapes = None if masks is None else self._convert_masks(masks)
        points = None if keypoints is None else self._convert_keypoints(keypoints)
        counts = {len(x) for x in (corners, shapes, points, labels, assigned_colors) if x is not None}
        if len(counts) > 1:
            raise ValueError(f"boxes, masks, keypoints, labels and colours differ in number: {sorted(counts)}")
        count = counts.pop() if counts else 0
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in range(count)]
        for index in self._large_first(count, corners, shapes):
            box = None if corners is None else corners[index]
            shape = None if shapes is None else shapes[index]
            if box is not None:
                self.draw_box(box, edge_color=colors[index])
            if shape is not None:
                for polygon in shape.polygons:
                    self.draw_polygon(polygon.reshape(-1, 2), colors[index], alpha=alpha)
            if labels is not None:
                self._label(labels[index], colors[index], box, shape)
        for person in [] if points is None else points:
            self.draw_and_connect_keypoints(person)
        return self.output

    def overlay_rotated_instances(
        self, boxes: Any = None, labels: Sequence[str] | None = None, assigned_colors: Sequence[Any] | None = None
    ) -> VisImage:
        """Draws (N, 5) boxes of (centre x, centre y, width, height, degrees counterclockwise)."""
        rows = np.asarray(getattr(boxes, "tensor", boxes), dtype=np.float64).reshape(-1, 5)
        colors = assigned_colors or [random_color(rgb=True, maximum=1) for _ in rows]
        for index in np.argsort(-rows[:, 2] * rows[:, 3]):
            self.draw_rotated_box_with_label(
                rows[index], edge_color=colors[index], label=None if labels is None else labels[index]
            )
        return self.output

    def get_output(self) -> VisImage:
        """The canvas."""
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
        """Writes a label into the box's top left corner; above the box, or below it, where it would cover too much."""
        if box is None:
            if mask is None or mask.area() == 0:
                return
            box = mask.bbox()
        type_height = 1.6 * self._default_font_size  # of a line with its plate, in pixels of the image
        x, y = float(box[0]), float(box[1])
        if box[3] - box[1] < 4 * type_height:
            y = y - type_height if y >= type_height else min(float(box[3]), self.output.height - type_height)
        self.draw_text(text, (x, y), color=color, horizontal_alignment="left", font_size=0.75 * self._default_font_size)

    def _color_of(self, table: str, index: int) -> Any:
        colors = self.metadata.get(table)
        if colors is None or index >= len(colors):
            return random_color(rgb=True, maximum=1)
        return tuple(value / 255 for value in colors[index])

    def _jitter(self, color: Any) -> tuple[float, float, float]:
        """A colour near ``color``: each channel moved by up to 0.1."""
        red, green, blue = np.clip(mplc.to_rgb(color) + np.random.uniform(-0.1, 0.1, 3), 0, 1)
        return float(red), float(green), float(blue)

    def _create_grayscale_image(self, mask: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, but for where ``mask`` (H, W) is set."""
        grey = np.repeat(self.img.astype("f4").mean(axis=2, keepdims=True), 3, axis=2)
        if mask is not None:
            grey[mask.astype(bool)] = self.img[mask.astype(bool)]
        return grey

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
    """Such as ``person 98%``, and ``person|crowd`` for groups; None if neither classes nor scores are given."""
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


def _segments(values: np.ndarray, metadata: Metadata) -> list[dict[str, Any]]:
    divisor = metadata.label_divisor
    things = set(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
    found = [int(v) for v in np.unique(values) if v != -1]
    return [{"id": v, "category_id": v // divisor, "isthing": v // divisor in things} for v in found]


def _read_labels(path: str) -> np.ndarray:
    from PIL import Image

    with PathManager.open(path, "rb") as file:
        return np.asarray(Image.open(file), dtype=np.uint8)
