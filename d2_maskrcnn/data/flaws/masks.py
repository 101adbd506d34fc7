"""Check that the segmentations of a COCO JSON can be decoded and fit their images and boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import shapely
from pycocotools import mask as mask_util

from d2_maskrcnn.data.flaws.boxes import OVERSHOOT, TOLERANCE, box_iou
from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import Flaw, shorten
from d2_maskrcnn.structures.rle import rle_pixel_counts

CHUNK = 10_000  # segmentations processed at a time
MIN_IOU = 0.5  # of a box with its mask's bounding box; below, a warning


class Fault(NamedTuple):
    """What is wrong with one segmentation: a key of ``_FAULTS`` and a description."""

    kind: str
    text: str


Faults = list[Fault | None]


@dataclass(frozen=True)
class Segmentations:
    """Faults and bounding boxes of the A segmentations of a table.

    Attributes:
        faults: why each cannot be used; None if it can.
        bounds: (A, 4) float64 XYXY of the points or pixels of each, NaN where it cannot be used.
        crossing: (A,) bool, polygons whose edges cross each other.
    """

    faults: Faults
    bounds: np.ndarray
    crossing: np.ndarray


_FORMAT = (
    "expected polygons [[x0, y0, x1, y1, x2, y2, ...], ...] of at least 3 points in pixels, or an RLE "
    '{"size": [height, width], "counts": ...}'
)
_FAULTS = {  # kind -> what, remedy
    "segmentation-missing": ("annotations without a 'segmentation'", _FORMAT),
    "segmentation-invalid": ("annotations with a bad 'segmentation'", _FORMAT),
    "polygon-points": ("annotations with a polygon of fewer than 3 points", _FORMAT),
    "polygon-not-finite": ("annotations with a polygon that is not finite", _FORMAT),
    "polygon-normalized": (
        "annotations with polygons in fractions of the image's size",
        "expected pixels: multiply x by the image's width and y by its height",
    ),
    "polygon-far-beyond": ("annotations with a polygon far outside of the image", "expected pixels of the image"),
    "polygon-outside": ("annotations with all polygons outside of the image", "expected pixels of the image"),
    "polygon-no-area": ("annotations with polygons without area", "delete or correct them"),
    "rle-size": (
        "annotations with an RLE of another size than the image",
        'expected "size": [height, width] of the upright image',
    ),
    "rle-runs": ("annotations with a broken RLE", "export them again, or delete them"),
    "rle-empty": ("annotations with an empty RLE", "delete them"),
}


def measure_segmentations(table: CocoTable) -> Segmentations:
    """Decode all segmentations as far as needed to know their faults and bounding boxes."""
    segmentations = [annotation.get("segmentation") for annotation in table.annotations]
    known, sides = (table.image_index >= 0).tolist(), table.image_sides().tolist()
    faults = [
        segmentation_fault(each, (sides[index][0], sides[index][1]) if known[index] else None)
        for index, each in enumerate(segmentations)
    ]
    bounds = np.full((len(faults), 4), np.nan)
    crossing = np.zeros(len(faults), dtype=bool)
    for start in range(0, len(faults), CHUNK):
        chunk = range(start, min(start + CHUNK, len(faults)))
        sound = [index for index in chunk if faults[index] is None and table.image_index[index] >= 0]
        polygons = [i for i in sound if type(segmentations[i]) is list]
        _measure_polygons(table, polygons, segmentations, faults, bounds)
        _find_crossing([i for i in polygons if faults[i] is None], segmentations, crossing)
        _measure_rles([i for i in sound if type(segmentations[i]) is dict], segmentations, faults, bounds)
    return Segmentations(faults, bounds, crossing)


def no_segmentations(table: CocoTable) -> Segmentations:
    """Return the result of measuring nothing, for datasets of boxes."""
    count = len(table.annotations)
    return Segmentations([None] * count, np.full((count, 4), np.nan), np.zeros(count, dtype=bool))


def check_segmentations(table: CocoTable, measured: Segmentations) -> Iterator[Flaw]:
    """Yield segmentations that are missing, malformed, of another image size, or outside of their image."""
    by_kind: dict[str, list[int]] = {}
    for index, fault in enumerate(measured.faults):
        if fault is not None:
            by_kind.setdefault(fault.kind, []).append(index)

    def describe(index: int) -> str:
        return f"{table.name(index)}: {measured.faults[index].text}"  # type: ignore[union-attr]

    for kind, (what, remedy) in _FAULTS.items():
        yield from table.annotation_flaw(kind, by_kind.get(kind, []), what, remedy, describe)
    sides = table.image_sides()
    with np.errstate(invalid="ignore"):
        low, high = measured.bounds[:, :2], measured.bounds[:, 2:]
        beyond = np.logical_or.reduce((low < -OVERSHOOT) | (high > sides + OVERSHOOT), axis=1)
    yield from table.annotation_flaw(
        "polygon-beyond",
        beyond,
        "annotations with a polygon reaching beyond the image",
        "training clips them at the border",
        lambda index: f"{table.name(index)}: {_box_text(measured.bounds[index])}",
        severity="warning",
    )
    yield from table.annotation_flaw(
        "polygon-crossing",
        measured.crossing,
        "annotations with a polygon that crosses itself",
        "the mask has holes where it overlaps itself: correct it in the annotation tool",
        severity="note",
    )


def check_rle_support(table: CocoTable) -> Iterator[Flaw]:
    """Yield RLEs of single objects, which ``INPUT.MASK_FORMAT`` polygon does not support."""
    yield from table.annotation_flaw(
        "rle-unsupported",
        np.array([isinstance(each.get("segmentation"), dict) for each in table.annotations], bool) & ~table.is_crowd,
        "annotations with an RLE as 'segmentation', which INPUT.MASK_FORMAT polygon does not support",
        "set INPUT.MASK_FORMAT to bitmask",
        structural=True,
    )


def segmentation_fault(segmentation: Any, size: tuple[int, int] | None) -> Fault | None:
    """Describe a fault in the structure of one segmentation; None if there is none.

    Args:
        size: (width, height) of its image in pixels, None if that is not known.
    """
    if type(segmentation) is list:
        if not segmentation:
            return Fault("segmentation-missing", "it is empty")
        for polygon in segmentation:
            if type(polygon) is not list:
                return Fault("segmentation-invalid", "expected a list of polygons, each a list of numbers")
            if len(polygon) % 2:
                return Fault("segmentation-invalid", f"a polygon of {len(polygon)} numbers")
            if len(polygon) < 6:
                return Fault("polygon-points", f"a polygon of {len(polygon)} numbers")
        return None
    if type(segmentation) is dict:
        return _rle_fault(segmentation, size)
    if segmentation is None:
        return Fault("segmentation-missing", "there is none (for boxes without masks set MODEL.MASK_ON to False)")
    return Fault("segmentation-invalid", "neither a list nor an object")


_BROKEN_RLE = Fault("rle-runs", "an RLE whose runs do not add up to height x width")


def _rle_fault(rle: dict[str, Any], image_size: tuple[int, int] | None) -> Fault | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(counts, list | str) or not isinstance(size, list):
        return Fault("segmentation-invalid", "an RLE without 'size' or 'counts'")
    if image_size is None:
        return None  # reported by check_ids
    width, height = image_size
    if size != [height, width] or not all(type(side) is int for side in size):
        text = f"an RLE of size {shorten(size)} (height, width) in an image of [{height}, {width}]"
        return Fault("rle-size", text)
    if isinstance(counts, list) and not (
        all(type(run) is int for run in counts) and min(counts, default=-1) >= 0 and sum(counts) == height * width
    ):
        return _BROKEN_RLE
    return None


def _measure_polygons(
    table: CocoTable, chosen: list[int], segmentations: list[Any], faults: Faults, bounds: np.ndarray
) -> None:
    """Set ``bounds`` (A, 4), XYXY of the points of each chosen annotation, or its fault."""
    points = _points([segmentations[index] for index in chosen])
    if points is None:
        for index in chosen:
            if _points([segmentations[index]]) is None:
                faults[index] = Fault("segmentation-invalid", "coordinates that are not numbers")
        _measure_polygons(table, [i for i in chosen if faults[i] is None], segmentations, faults, bounds)
        return
    if not chosen:
        return
    counts = np.array([sum(map(len, segmentations[index])) // 2 for index in chosen], dtype=np.int64)
    first = (np.cumsum(counts) - counts).astype(np.int64)
    low, high = np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)  # (n, 2); NaN is kept
    sides = table.image_sides()[chosen]
    x, y, width, height = table.boxes[chosen].T
    with np.errstate(invalid="ignore", over="ignore"):  # fractions, unless the box is in them as well
        normalized = (low >= 0).all(axis=1) & (high <= 1).all(axis=1) & (sides > 2).all(axis=1)
        normalized &= ~((np.maximum(x + width, y + height) <= TOLERANCE) & (np.maximum(width, height) > 0.5))
        tests = (
            ("polygon-not-finite", ~(np.isfinite(low) & np.isfinite(high)), "coordinates that are not finite numbers"),
            ("polygon-far-beyond", (low < -sides) | (high > 2 * sides), "points far outside of the image"),
            ("polygon-outside", (low >= sides) | (high <= 0), "polygons outside of the image"),
            ("polygon-no-area", low >= high, "polygons without area"),
            ("polygon-normalized", normalized[:, None], "coordinates from 0 to 1"),
        )
    bounds[chosen] = np.concatenate([low, high], axis=1)
    for kind, bad, text in tests:
        for index in np.asarray(chosen)[bad.any(axis=1)].tolist():
            faults[index] = faults[index] or Fault(kind, text)
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
            faults[index] = _BROKEN_RLE
    sound = [index for index in chosen if faults[index] is None]
    if not sound:
        return
    rles = [segmentations[i] for i in sound]
    rles = [mask_util.frPyObjects(each, *each["size"]) if type(each["counts"]) is list else each for each in rles]
    boxes = mask_util.toBbox(rles)  # XYWH
    boxes[:, 2:] += boxes[:, :2]
    bounds[sound] = boxes
    for index in np.asarray(sound)[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)].tolist():
        faults[index] = Fault("rle-empty", "an RLE without any pixel of the object")
        bounds[index] = np.nan


def _find_crossing(chosen: list[int], segmentations: list[Any], crossing: np.ndarray) -> None:
    """Set ``crossing`` (A,) for the chosen annotations with a polygon whose edges cross."""
    polygons = [polygon for index in chosen for polygon in segmentations[index]]
    if not polygons:
        return
    owners = np.repeat(chosen, [len(segmentations[index]) for index in chosen])
    lengths = np.array([len(polygon) // 2 for polygon in polygons])
    points = np.fromiter(chain.from_iterable(polygons), dtype=np.float64).reshape(-1, 2)
    rings = shapely.linearrings(points, indices=np.repeat(np.arange(len(polygons)), lengths))
    crossing[owners[~shapely.is_simple(rings)]] = True


def check_against_boxes(table: CocoTable, bounds: np.ndarray, bad_boxes: np.ndarray) -> Iterator[Flaw]:
    """Yield annotations whose box does not fit the bounding box (A, 4) XYXY of the mask, NaN if that is unknown.

    Args:
        bad_boxes: (A,) bool, boxes that are left out.
    """
    x, y, width, height = table.boxes.T
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    usable = np.isfinite(boxes).all(axis=1) & (width > 0) & (height > 0) & np.isfinite(bounds).all(axis=1) & ~bad_boxes
    with np.errstate(invalid="ignore", over="ignore"):
        usable &= np.abs(boxes - bounds).max(axis=1) > TOLERANCE
        iou = box_iou(boxes, bounds)

    def describe(index: int) -> str:
        return f"{table.describe_box(index)}, mask within {_box_text(bounds[index])}"

    yield from table.annotation_flaw(
        "mask-outside-box",
        usable & (iou == 0),
        "annotations with a mask outside of the box",
        "expected both in pixels of the same image: correct one of them",
        describe,
    )
    yield from table.annotation_flaw(
        "box-differs",
        usable & (iou > 0) & (iou < MIN_IOU),
        "annotations with a box that does not fit the mask",
        f"their bounding boxes overlap with an IoU below {MIN_IOU:g}: compute the boxes from the masks",
        describe,
        severity="warning",
    )


def _box_text(bounds: np.ndarray) -> str:
    x0, y0, x1, y1 = bounds
    return f"[{x0:g}, {y0:g}, {x1 - x0:g}, {y1 - y0:g}]"
