"""Convert the annotations of a record to boxes and masks in the image's own frame."""

from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.data.mapper import Record
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
    boxes = [BoxMode.convert(list(each["bbox"]), each["bbox_mode"], BoxMode.XYXY_ABS) for each in annotations]
    masks = [decode_segmentation(each.get("segmentation"), *size) for each in annotations]
    return GroundTruth(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        np.asarray([each["category_id"] for each in annotations], dtype=np.int64),
        np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        np.asarray([bool(each.get("iscrowd", 0)) for each in annotations], dtype=bool),
    )
