"""Trace masks exactly, as rings along the edges of pixels, and reduce them to few points.

A ring is a closed polygon (K, 2) int64 of x, y in pixels of the image; pixel i covers [i, i + 1]. A pixel belongs to a
mask if it lies inside an odd number of rings. pycocotools rasterizes such rings without any error.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as mask_util

_TOLERANCES = (8.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.7)  # pixels, tried from the coarsest on


def mask_to_rings(mask: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Trace a mask along the edges of its pixels.

    Args:
        mask: (h, w) bool or uint8 in {0, 1}.
        offset: (x, y) of the mask's first pixel in the image.

    Returns:
        For each contour its outer ring and the rings of its holes. Pixels that touch at a corner are one contour.
    """
    if mask.size == 0:
        return []
    # At twice the size, the two halves of a border pixel tell which of its edges the contour follows.
    doubled = np.ascontiguousarray(mask, np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}
    parents = [] if hierarchy is None else hierarchy[0][:, 3].tolist()
    edges = [_without_repeats((contour[:, 0].astype(np.int64) + 1) // 2) + offset for contour in contours]
    for index, parent in enumerate(parents):
        if parent < 0:
            rings[index] = (edges[index], [])
    for index, parent in enumerate(parents):
        if parent >= 0:
            rings[parent][1].append(edges[index])
    return list(rings.values())


def _without_repeats(points: np.ndarray) -> np.ndarray:
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]


def join_rings(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join rings to one polygon that has the same pixels, for formats with one polygon per object.

    The rings are connected by bridges of no width. A bridge goes along rows and columns, so that a rasterizer crosses
    it twice at the same place.

    Args:
        rings: at least one.

    Returns:
        (K, 2) int64.
    """
    first = rings[0]
    parts = [first]
    for ring in rings[1:]:
        corner = np.array([ring[0][0], first[0][1]])
        parts += [first[:1] if len(parts) == 1 else first[:0], corner[None], ring, ring[:1], corner[None], first[:1]]
    return np.concatenate(parts)


def simplify_rings(rings: Sequence[np.ndarray], mask: np.ndarray, min_iou: float) -> list[np.ndarray] | None:
    """Leave points out as long as the IoU with a mask stays at or above ``min_iou``.

    Args:
        rings: in the frame of ``mask``, such as its outer rings alone.
        mask: (h, w) bool.
        min_iou: in [0, 1]; at 1 no point is left out.

    Returns:
        The rings with fewer points, each at least three; None if even the rings themselves differ more.
    """
    for tolerance in _TOLERANCES if min_iou < 1 else ():
        fewer = [_simplify(ring, tolerance) for ring in rings]
        if _iou(_rasterize(fewer, *mask.shape), mask) >= min_iou:
            return fewer
    return list(rings) if _iou(_rasterize(rings, *mask.shape), mask) >= min_iou else None


def _simplify(ring: np.ndarray, tolerance: float) -> np.ndarray:
    fewer = cv2.approxPolyDP(ring.astype(np.int32)[:, None], tolerance, True)[:, 0].astype(np.int64)
    return fewer if len(fewer) >= 3 else ring


def _rasterize(rings: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the union of polygons as COCO does: (height, width) bool."""
    polygons = [ring.astype(np.float64).ravel().tolist() for ring in rings]
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, height, width))).astype(bool)


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 1.0
