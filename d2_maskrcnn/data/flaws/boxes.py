"""Check that the boxes and areas of a COCO JSON are possible and fit the images, vectorized with NumPy."""

from collections.abc import Iterator

import numpy as np

from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import Flaw, Severity

OVERSHOOT = 1.0  # pixels by which a box may leave the image without a warning
TOLERANCE = 2.0  # pixels by which a box may differ from its mask whatever their IoU: masks of small objects are rounded
_ROUNDING = 0.75  # pixels by which a box of another convention may differ from its mask
_CLEAR_IOU = 0.8  # of a box with its mask; below, it is clearly another box
_SHARE = 0.2  # of all boxes that must leave their images to suspect that they are [x0, y0, x1, y1]
_FEWEST = 5  # boxes from which their convention is guessed


def check_boxes(table: CocoTable, corners: np.ndarray) -> Iterator[Flaw]:
    """Yield boxes that are not finite, without area, outside of their image, or of another convention.

    Args:
        corners: (A,) bool, boxes that are [x0, y0, x1, y1]; see :func:`corners_as_boxes`.
    """
    expected = "expected [x, y, width, height] in pixels of the image: delete or correct them"
    finite = np.logical_and.reduce(np.isfinite(table.boxes), axis=1)
    yield from _boxes("box-not-finite", table, table.has_box & ~finite, "with a number that is not finite", expected)
    x, y, width, height = np.where(finite, table.boxes.T, 1.0)
    sized = (width > 0) & (height > 0)
    remedy = "expected [x, y, width, height] with width and height above 0: delete or correct them"
    yield from _boxes("box-no-area", table, finite & ~sized, "without area", remedy)
    remedy = "expected [x, y, width, height]: subtract x0 and y0 from the last two"
    yield from _boxes("box-corners", table, corners & finite, "written as [x0, y0, x1, y1]", remedy)
    known = finite & sized & ~corners & (table.image_index >= 0)
    image_width, image_height = table.image_sides().T
    outside = known & ((x >= image_width) | (y >= image_height) | (x + width <= 0) | (y + height <= 0))
    yield from _boxes("box-outside", table, outside, "outside of the image", expected)
    beyond_x = np.maximum(-x, x + width - image_width)
    beyond_y = np.maximum(-y, y + height - image_height)
    far = known & ~outside & ((beyond_x > image_width) | (beyond_y > image_height))
    yield from _boxes("box-far-beyond", table, far, "reaching beyond the image by more than its size", expected)
    beyond = known & ~outside & ~far & (np.maximum(beyond_x, beyond_y) > OVERSHOOT)
    remedy = "training clips them at the border (are they [x0, y0, x1, y1]? expected [x, y, width, height])"
    yield from _boxes("box-beyond", table, beyond, "reaching beyond the image", remedy, "warning")
    fractions = known & (np.maximum(x + width, y + height) <= 1) & (np.minimum(image_width, image_height) > 2)
    remedy = "expected pixels: multiply them by the image's width and height"
    yield from _boxes("box-normalized", table, fractions, "in fractions of the image's size", remedy)


def _boxes(
    kind: str, table: CocoTable, bad: np.ndarray, what: str, remedy: str, severity: Severity = "error"
) -> Iterator[Flaw]:
    yield from table.annotation_flaw(kind, bad, f"boxes {what}", remedy, table.describe_box, severity)


def corners_as_boxes(table: CocoTable, bounds: np.ndarray) -> np.ndarray:
    """Return which boxes are [x0, y0, x1, y1] instead of [x, y, width, height]: (A,) bool.

    A box with a mask is one if it equals the mask's bounding box in that convention and is far from it in COCO's.
    Without any masks, all boxes are if each is possible in both conventions and many leave their images in COCO's.

    Args:
        bounds: (A, 4) XYXY of the masks in pixels, NaN where they are not known.
    """
    boxes = table.boxes
    x, y, width, height = boxes.T
    measured = np.isfinite(bounds).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        if measured.any():
            correct = np.column_stack([x, y, x + width, y + height])
            corners = np.abs(boxes - bounds).max(axis=1) <= _ROUNDING  # false for NaN
            corners &= np.abs(correct - bounds).max(axis=1) > TOLERANCE
            clear = corners & (box_iou(correct, bounds) < _CLEAR_IOU)
            return corners if 2 * clear.sum() > measured.sum() else clear
        known = table.has_box & (table.image_index >= 0)
        sides = table.image_sides().T + OVERSHOOT
        possible = (width > x) & (height > y) & (width <= sides[0]) & (height <= sides[1])
        beyond = (x + width > sides[0]) | (y + height > sides[1])
    enough = known.sum() >= _FEWEST and possible[known].all() and beyond[known].mean() >= _SHARE
    return known & enough


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the IoU of corresponding XYXY boxes (A, 4), NaN where a side is: (A,) float64 in [0, 1]."""
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    areas = (first[:, 2:] - first[:, :2]).prod(axis=1) + (second[:, 2:] - second[:, :2]).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return shared / (areas - shared)


def check_areas(table: CocoTable, bad_boxes: np.ndarray) -> Iterator[Flaw]:
    """Yield impossible values of ``area``, by which COCO's metrics sort objects into small, medium and large.

    Args:
        bad_boxes: (A,) bool, boxes that areas are not compared with.
    """
    areas = table.areas
    with np.errstate(over="ignore", invalid="ignore"):
        box_areas = np.abs(table.boxes[:, 2] * table.boxes[:, 3])
        impossible = (table.image_index >= 0) & (areas > 2 * table.image_sides().prod(axis=1))
        unlikely = (areas <= 1e-4 * box_areas) | (areas > 1.5 * box_areas)
        doubtful = ~impossible & unlikely & (box_areas > 4) & ~bad_boxes

    def describe(index: int) -> str:
        return f"{table.describe_box(index)}, area {areas[index]:g}"

    yield from table.annotation_flaw(
        "area-impossible",
        impossible,
        "annotations with an area larger than the image",
        "expected the area of the mask in square pixels",
        describe,
    )
    yield from table.annotation_flaw(
        "area-doubtful",
        doubtful,
        "annotations with an area that does not fit the box",
        "expected the area of the mask in square pixels; AP of small, medium and large objects depends on it",
        describe,
        severity="warning",
    )
