"""Check that a model as configured can find the objects of a dataset: their sizes and their number per image."""

from collections.abc import Iterator

import numpy as np

from d2_maskrcnn.data.anchor_fit import GOOD_IOU, anchor_shapes, input_scale, shape_iou
from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import Flaw
from detectron2.config import CfgNode

MANY_SMALL = 0.1  # share of the objects from which small ones are reported
MANY_MISFITS = 0.25  # share of the objects that fit no anchor; 0.12 of MS COCO's with the default anchors
_CHUNK = 100_000  # boxes compared with the anchors at a time


def check_limits(table: CocoTable, cfg: CfgNode) -> Iterator[Flaw]:
    """Yield images with more objects than the model returns or the RPN proposes."""
    limits = {
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
        "MODEL.RPN.POST_NMS_TOPK_TEST": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
    }
    counts = table.objects_per_image()
    most = int(counts.max(initial=0))
    for key, limit in limits.items():
        if limit < 0:
            continue
        yield from table.image_flaw(
            "too-many-objects",
            counts > limit,
            f"of {len(counts)} images have more objects than {key} {limit}, up to {most}",
            f"the others are never detected and count as false negatives; set {key} to {most} or more",
            lambda index: f"{table.images[index]['file_name']}: {counts[index]}",
            severity="warning",
        )


def check_object_sizes(table: CocoTable, cfg: CfgNode, bad_boxes: np.ndarray) -> Iterator[Flaw]:
    """Yield objects that are too small for the anchors or have a shape that no anchor fits, if there are many.

    Args:
        bad_boxes: (A,) bool, boxes that are left out.
    """
    index = _usable_boxes(table, bad_boxes)
    if not len(index):
        return
    sides = table.boxes[index, 2:] * input_scale(cfg, table.image_sides()[index])[:, None]
    shapes, anchors = anchor_shapes(cfg)
    smallest = min(anchor["size"] for anchor in anchors)
    small = np.sqrt(sides.prod(axis=1)) < smallest / 2
    parts = np.array_split(sides, len(sides) // _CHUNK + 1)
    best = np.concatenate([shape_iou(part, shapes).max(axis=1) for part in parts])

    def describe(row: int) -> str:
        position = int(np.searchsorted(index, row))
        return f"{table.name(row)}: {sides[position, 0]:.3g}x{sides[position, 1]:.3g} pixels of the network's input"

    if small.mean() > MANY_SMALL:
        yield from table.annotation_flaw(
            "object-too-small",
            index[small],
            f"annotations ({small.mean():.0%}) smaller than half the smallest anchor of {smallest:g} pixels",
            "raise INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST, or use smaller MODEL.ANCHOR_GENERATOR.SIZES",
            describe,
            severity="warning",
        )
    misfit = (best < GOOD_IOU) & ~small
    if misfit.mean() > MANY_MISFITS:
        yield from table.annotation_flaw(
            "anchor-misfit",
            index[misfit],
            f"annotations ({misfit.mean():.0%}) whose box no anchor shape overlaps with an IoU of {GOOD_IOU} or more",
            "add fitting sizes or ratios to MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS",
            describe,
            severity="warning",
        )


def _usable_boxes(table: CocoTable, bad_boxes: np.ndarray) -> np.ndarray:
    """Return the indices of boxes with an area, of objects in known images: (n,) int64."""
    with np.errstate(invalid="ignore"):
        usable = ~table.is_crowd & (table.image_index >= 0) & (table.boxes[:, 2:] > 0).all(axis=1)
    return np.flatnonzero(usable & np.isfinite(table.boxes).all(axis=1) & ~bad_boxes)
