"""Encode, decode and compare instance masks; :mod:`d2_maskrcnn.structures.mask_pasting` pastes them.

All coordinates are in pixels of the image, x to the right and y down; the pixel in column x and row y covers
[x, x + 1) x [y, y + 1) and has its center at (x + 0.5, y + 0.5). Boxes are XYXY. RLE is COCO's run-length encoding:
alternating runs of 0 and 1, column by column (https://github.com/cocodataset/cocoapi).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.rle import decode_runs
from d2_maskrcnn.structures.windows import Crop, Window

Rle = dict[str, Any]


def encode_rle(mask: np.ndarray, window: Window | None = None, image_size: tuple[int, int] | None = None) -> Rle:
    """Encode a mask as compressed RLE.

    Args:
        mask: (h, w) bool or uint8 in {0, 1}.
        window: position of ``mask`` in the image, which is 0 elsewhere; None if ``mask`` is the whole image.
        image_size: (H, W) of the image; needed with ``window``.

    Returns:
        ``{"size": [H, W], "counts": str}``, as in COCO's JSON files.

    Raises:
        ValueError: ``window`` has another size than ``mask`` or leaves the image.
    """
    height, width = mask.shape if image_size is None else image_size
    x0, y0, x1, y1 = window or (0, 0, width, height)
    if (y1 - y0, x1 - x0) != mask.shape or not (0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height):
        raise ValueError(f"a mask of {mask.shape} does not fit in {window} of an image of {(height, width)}")
    return _encode_edges(_edges(mask, x0, y0, height), height, width)


def encode_rle_parts(parts: Iterable[Crop], image_size: tuple[int, int]) -> Rle:
    """Encode a mask as compressed RLE from parts of it, of which one at a time is in memory.

    Args:
        parts: windows that follow each other from left to right, and the mask there, (h, w) bool or uint8 in {0, 1}.
        image_size: (H, W) of the image.
    """
    height, width = image_size
    edges = [_edges(pixels, window.x0, window.y0, height) for window, pixels in parts]
    return _encode_edges(np.concatenate([np.zeros(0, np.int64), *edges]), height, width)


def rle_area(rle: Rle) -> int:
    """Return the number of pixels of a mask that is a compressed RLE."""
    return int(mask_util.area(rle))


def _edges(mask: np.ndarray, x0: int, y0: int, height: int) -> np.ndarray:
    """Return the starts and ends, alternating, of the runs of 1 in each column of a mask, counted down the columns."""
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)  # one background pixel at each end of a column
    columns[:, 1:-1] = mask.T
    changes = columns[:, 1:] != columns[:, :-1]
    column, row = np.divmod(np.flatnonzero(changes), changes.shape[1])
    return (column + x0) * height + row + y0


def _encode_edges(edges: np.ndarray, height: int, width: int) -> Rle:
    joined = edges[1:] == edges[:-1]  # a run that ends where the next one starts continues in the next column
    keep = np.ones(len(edges), dtype=bool)
    keep[1:] ^= joined
    keep[:-1] ^= joined
    counts = np.diff(np.concatenate(([0], edges[keep], [height * width])))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode the ``segmentation`` of a COCO annotation.

    Args:
        segmentation: see :func:`segmentation_to_rle`.
        height, width: of the image, in pixels.

    Returns:
        (height, width) bool.

    Raises:
        UserError: the segmentation is malformed or belongs to an image of another size.
    """
    rle = segmentation_to_rle(segmentation, height, width)
    runs = decode_runs(rle["counts"])
    if runs.sum() != height * width:  # pycocotools would read past the end of its buffer
        raise UserError(f"segmentation: the runs of an RLE cover {runs.sum()} pixels, expected {height} x {width}")
    return mask_util.decode(rle).astype(bool)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> Rle:
    """Convert the ``segmentation`` of a COCO annotation to compressed RLE.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]``, of which the union is taken; an RLE
            ``{"size": [H, W], "counts": ...}``, uncompressed (list) or compressed (str or bytes), or None or an empty
            list for an empty mask.
        height, width: of the image, in pixels.

    Raises:
        UserError: the segmentation is malformed or belongs to an image of another size.
    """
    if not segmentation:
        segmentation = {"size": [height, width], "counts": [height * width]}
    if isinstance(segmentation, list):
        for polygon in segmentation:
            check_polygon(polygon, height, width)
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= set(segmentation):
        raise UserError(f"segmentation: expected polygons or an RLE with size and counts, got {segmentation!r:.80}")
    if list(segmentation["size"]) != [height, width]:
        raise UserError(
            f"segmentation: an RLE of size {segmentation['size']} (height, width) in an image of [{height}, {width}]"
        )
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return dict(segmentation)


def check_polygon(polygon: Any, height: int, width: int) -> None:
    """Check that a polygon can be rasterized: pycocotools needs memory in proportion to its perimeter.

    Args:
        polygon: [x0, y0, x1, y1, x2, y2, ...] in pixels.
        height, width: of the image, in pixels.

    Raises:
        UserError: it has fewer than three points, a coordinate is not a finite number, or a point lies outside of the
            image by more than the image's longer side.
    """
    try:
        points = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise UserError(f"segmentation: expected polygons [x0, y0, x1, y1, x2, y2, ...], got {polygon!r:.80}")
    side = max(height, width)
    if not -side <= points.min() <= points.max() <= 2 * side:  # false for NaN
        raise UserError(f"segmentation: a polygon {polygon!r:.80} far outside of its image of [{height}, {width}]")


def mask_to_polygons(mask: np.ndarray, offset: tuple[int, int] = (0, 0), tolerance: float = 0.0) -> list[np.ndarray]:
    """Trace the outer contours of a mask; holes are filled, parts of one or two pixels left out.

    Args:
        mask: (h, w) bool or uint8 in {0, 1}.
        offset: (x, y) of the mask's first pixel in the image.
        tolerance: distance in pixels by which a polygon may deviate from the contour.

    Returns:
        (K, 2) float64 arrays of x, y with K >= 3, one per contour, through the centers of the border pixels.
    """
    if mask.size == 0:
        return []
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=offset
    )
    if tolerance > 0:
        contours = [cv2.approxPolyDP(contour, tolerance, True) for contour in contours]
    return [contour[:, 0] + 0.5 for contour in contours if len(contour) >= 3]


def coco_iou(
    detections: Sequence[Rle] | np.ndarray, ground_truth: Sequence[Rle] | np.ndarray, crowd: np.ndarray | None = None
) -> np.ndarray:
    """Compute the IoU of all pairs as the COCO evaluation does.

    Args:
        detections: N compressed RLEs, or (N, 4) XYXY boxes.
        ground_truth: G of the same kind.
        crowd: (G,) bool; for a crowd region the intersection is divided by the detection's area instead of the union.

    Returns:
        (N, G) float64 in [0, 1].
    """
    if len(detections) == 0 or len(ground_truth) == 0:
        return np.zeros((len(detections), len(ground_truth)))
    flags = np.zeros(len(ground_truth), np.uint8) if crowd is None else np.asarray(crowd, np.uint8)
    if isinstance(detections, np.ndarray):
        detections, ground_truth = _to_xywh(detections), _to_xywh(np.asarray(ground_truth))
    return np.asarray(mask_util.iou(detections, ground_truth, flags.tolist()))


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
