"""Convert the annotations of a record to boxes and masks in the image's own frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.data.mapper import Record
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks
from d2_maskrcnn.structures.masks import decode_segmentation
from detectron2.structures import BoxMode


@dataclass
class GroundTruth:
    """G annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 XYXY in pixels of the image file.
        classes: (G,) int64, counted from 0.
        masks: (G, H, W) bool; empty for objects without a segmentation.
        crowd: (G,) bool, regions of many objects, which count neither as false negatives nor make false positives.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def ground_truth_of(record: Record) -> GroundTruth | None:
    """Convert the annotations of a record, whatever their box mode; None if it has no key ``annotations``.

    Args:
        record: in Detectron2's standard format, with ``height`` and ``width``.

    Raises:
        UserError: a segmentation is malformed or of another image size.
    """
    if "annotations" not in record:
        return None
    annotations = record["annotations"]
    size = (record["height"], record["width"])
    masks = [decode_segmentation(each.get("segmentation"), *size) for each in annotations]
    return GroundTruth(
        *_boxes_and_classes(annotations),
        np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        np.asarray([bool(each.get("iscrowd", 0)) for each in annotations], dtype=bool),
    )


def ground_truth_detections(record: Record) -> Detections:
    """Convert the annotations of a record, without crowd regions, for drawing; scores are NaN.

    The masks are crops, so that hundreds of objects of a large image fit in memory.

    Raises:
        UserError: a segmentation is malformed or of another image size.
    """
    annotations = [each for each in record.get("annotations", []) if not each.get("iscrowd", 0)]
    size = (record["height"], record["width"])
    crops = [
        CropMasks.from_images(decode_segmentation(each.get("segmentation"), *size)[None], size) for each in annotations
    ]
    boxes, classes = _boxes_and_classes(annotations)
    masks = CropMasks([crop.windows[0] for crop in crops], [crop.bitmaps[0] for crop in crops], size)
    return Detections(boxes, np.full(len(boxes), np.nan, np.float32), classes, size, masks)


def _boxes_and_classes(annotations: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return (G, 4) float32 XYXY and (G,) int64; boxes without a mode are COCO's XYWH."""
    boxes = [
        BoxMode.convert(list(each["bbox"]), each.get("bbox_mode", BoxMode.XYWH_ABS), BoxMode.XYXY_ABS)
        for each in annotations
    ]
    classes = np.asarray([each["category_id"] for each in annotations], dtype=np.int64)
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4), classes
