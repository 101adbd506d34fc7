"""Check that the segmentations of a COCO JSON file can be decoded and fit their images and boxes."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from d2_maskrcnn.data.flaws.boxes import CocoTable
from d2_maskrcnn.data.flaws.flaw import Problem, problem, shorten
from d2_maskrcnn.structures.rle import rle_pixel_counts

CHUNK = 10_000  # segmentations processed at a time
MIN_IOU = 0.5  # of a box with its mask's bounding box; below, a warning
TOLERANCE = 2.0  # pixels by which their sides may differ whatever their IoU: masks of small objects are rounded

Faults = list[str | None]


def check_segmentations(table: CocoTable, polygons_only: bool = False) -> Iterator[Problem]:
    """Yield segmentations that are missing, malformed, of another image size, or far from their image or box.

    Args:
        table: the columns of the file.
        polygons_only: whether RLEs of single objects are an error (``INPUT.MASK_FORMAT`` is ``polygon``).
    """
    segmentations = [annotation.get("segmentation") for annotation in table.annotations]
    faults = [_fault(table, index, segmentation) for index, segmentation in enumerate(segmentations)]
    bounds = np.full((len(faults), 4), np.nan)
    for start in range(0, len(faults), CHUNK):
        chunk = range(start, min(start + CHUNK, len(faults)))
        sound = [index for index in chunk if faults[index] is None and table.image_index[index] >= 0]
        _measure_polygons(table, [i for i in sound if type(segmentations[i]) is list], segmentations, faults, bounds)
        _measure_rles([i for i in sound if type(segmentations[i]) is dict], segmentations, faults, bounds)
    yield from problem(
        [index for index, fault in enumerate(faults) if fault],
        "annotations with a bad 'segmentation'",
        lambda index: f"{table.name(index)}: {faults[index]}",
        "expected polygons [[x0, y0, x1, y1, x2, y2, ...], ...] of at least 3 points in pixels, or an RLE "
        '{"size": [height, width], "counts": ...}',
    )
    yield from _check_against_boxes(table, bounds)
    if polygons_only:
        yield from problem(
            [i for i, each in enumerate(segmentations) if isinstance(each, dict) and not table.is_crowd[i]],
            "annotations with an RLE as 'segmentation', which INPUT.MASK_FORMAT polygon does not support",
            table.name,
            "set INPUT.MASK_FORMAT to bitmask",
            structural=True,
        )


def _fault(table: CocoTable, index: int, segmentation: Any) -> str | None:
    """Describe a fault in the structure of one segmentation; None if there is none."""
    if type(segmentation) is list:
        if not segmentation:
            return "it is empty"
        for polygon in segmentation:
            if type(polygon) is not list:
                return "expected a list of polygons, each a list of numbers"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"a polygon of {len(polygon)} numbers"
        return None
    if type(segmentation) is dict:
        return _rle_fault(table, index, segmentation)
    if segmentation is None:
        return "there is none (for boxes without masks set MODEL.MASK_ON to False)"
    return "neither a list nor an object"


def _rle_fault(table: CocoTable, index: int, rle: dict[str, Any]) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(counts, list | str) or not isinstance(size, list):
        return "an RLE without 'size' or 'counts'"
    position = table.image_index[index]
    if position < 0:
        return None  # reported by check_ids
    width, height = table.sizes[position].tolist()
    if size != [height, width] or not all(type(side) is int for side in size):
        return f"an RLE of size {shorten(size)} (height, width) in an image of [{height}, {width}]"
    if isinstance(counts, list) and not (
        all(type(run) is int for run in counts) and min(counts, default=-1) >= 0 and sum(counts) == height * width
    ):
        return "an RLE whose runs do not add up to height x width"
    return None


def _measure_polygons(
    table: CocoTable, chosen: list[int], segmentations: list[Any], faults: Faults, bounds: np.ndarray
) -> None:
    """Set ``bounds`` (A, 4), XYXY of the points of each chosen annotation, or its fault."""
    points = _points([segmentations[index] for index in chosen])
    if points is None:
        for index in chosen:
            if _points([segmentations[index]]) is None:
                faults[index] = "coordinates that are not numbers"
        _measure_polygons(table, [i for i in chosen if faults[i] is None], segmentations, faults, bounds)
        return
    if not chosen:
        return
    counts = np.array([sum(map(len, segmentations[index])) // 2 for index in chosen], dtype=np.int64)
    first = (np.cumsum(counts) - counts).astype(np.int64)
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)  # (n, 2); NaN is kept
    sides = table.image_sides()[chosen]
    tests = (
        (~(np.isfinite(low) & np.isfinite(high)).all(axis=1), "coordinates that are not finite numbers"),
        (((low < -sides) | (high > 2 * sides)).any(axis=1), "points outside of the image by more than its size"),
        (((low >= sides) | (high <= 0)).any(axis=1), "polygons outside of the image"),
        ((low >= high).any(axis=1), "polygons without area"),
    )
    bounds[chosen] = np.concatenate([low, high], axis=1)
    for bad, fault in tests:
        for index in np.asarray(chosen)[bad].tolist():
            faults[index] = faults[index] or fault
            bounds[index] = np.nan


def _points(segmentations: list[Any]) -> np.ndarray | None:
    """Return the coordinates of all polygons as (P, 2) float64, or None if one is not a number."""
    numbers = list(chain.from_iterable(chain.from_iterable(segmentations)))
    if not set(map(type, numbers)) <= {int, float}:
        return None
    try:
        return np.array(numbers, dtype=np.float64).reshape(-1, 2)
    except OverflowError:
        return None


def _measure_rles(chosen: list[int], segmentations: list[Any], faults: Faults, bounds: np.ndarray) -> None:
    """Set ``bounds`` (A, 4), XYXY of the mask of each chosen annotation, or its fault."""
    compressed = [i for i in chosen if type(segmentations[i]["counts"]) is str]
    pixels = rle_pixel_counts([segmentations[i]["counts"] for i in compressed])
    for index, covered in zip(compressed, pixels.tolist(), strict=True):
        height, width = segmentations[index]["size"]
        if covered != height * width:
            faults[index] = "an RLE whose runs do not add up to height x width"
    sound = [index for index in chosen if faults[index] is None]
    if not sound:
        return
    rles = [segmentations[i] for i in sound]
    rles = [mask_util.frPyObjects(each, *each["size"]) if type(each["counts"]) is list else each for each in rles]
    boxes = mask_util.toBbox(rles)  # XYWH
    boxes[:, 2:] += boxes[:, :2]
    bounds[sound] = boxes
    for index in np.asarray(sound)[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)].tolist():
        faults[index] = "an RLE without any pixel of the object"
        bounds[index] = np.nan


def _check_against_boxes(table: CocoTable, bounds: np.ndarray) -> Iterator[Problem]:
    """Yield annotations whose box does not fit the bounding box (A, 4) XYXY of the mask, NaN if that is unknown."""
    x, y, width, height = table.boxes.T
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    usable = np.isfinite(boxes).all(axis=1) & (width > 0) & (height > 0) & np.isfinite(bounds).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        usable &= np.abs(boxes - bounds).max(axis=1) > TOLERANCE
        sides = np.minimum(boxes[:, 2:], bounds[:, 2:]) - np.maximum(boxes[:, :2], bounds[:, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        union = width * height + (bounds[:, 2:] - bounds[:, :2]).prod(axis=1) - shared
        apart, different = usable & (shared == 0), usable & (shared > 0) & (shared < MIN_IOU * union)

    def describe(index: int) -> str:
        x0, y0, x1, y1 = bounds[index]
        return f"{table.describe_box(index)}, mask within [{x0:g}, {y0:g}, {x1 - x0:g}, {y1 - y0:g}]"

    yield from problem(
        np.flatnonzero(apart),
        "annotations with a mask outside of the box",
        describe,
        "expected both in pixels of the same image (are the polygons fractions of its size?): correct one of them",
    )
    yield from problem(
        np.flatnonzero(different),
        "annotations with a box that does not fit the mask",
        describe,
        f"their bounding boxes overlap with an IoU below {MIN_IOU:g} (are the boxes [x0, y0, x1, y1]? expected "
        "[x, y, width, height])",
        fatal=False,
    )
