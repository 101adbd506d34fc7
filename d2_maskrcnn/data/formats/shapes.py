"""Convert the shapes of annotation tools to segmentations. Coordinates are in pixels, angles in degrees clockwise."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from d2_maskrcnn.data.formats.dataset import ImageFile, Segmentation
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.contours import join_rings, mask_to_rings
from d2_maskrcnn.structures.masks import decode_segmentation, segmentation_to_rle

MIN_POINTS, MAX_POINTS = 32, 720  # of the polygon of an ellipse


def numbers(values: Sequence[Any], what: str) -> list[float]:
    """Convert values to finite floats.

    Raises:
        UserError: one of them is not a finite number; ``what`` names them.
    """
    try:
        result = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} that are not numbers") from error
    if not all(map(math.isfinite, result)):
        raise UserError(f"{what} that are not finite numbers")
    return result


def polygon(points: Any) -> list[float]:
    """Convert [[x, y], ...] to [x0, y0, x1, y1, ...].

    Raises:
        UserError: there are fewer than three points, or one is not a pair of finite numbers.
    """
    if not isinstance(points, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in points):
        raise UserError("coordinates that are not pairs of numbers")
    if len(points) < 3:
        raise UserError("a polygon of fewer than 3 points")
    return numbers([value for point in points for value in point], "coordinates")


def rectangle(x: float, y: float, width: float, height: float, angle: float = 0.0) -> list[float]:
    """Return the polygon of a rectangle with its top left corner at (x, y), turned about that corner."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    return [value for u, v in corners for value in (x + u * cos - v * sin, y + u * sin + v * cos)]


def turned_rectangle(x: float, y: float, width: float, height: float, angle: float) -> list[float]:
    """Return the polygon of a rectangle with its top left corner at (x, y), turned about its center."""
    points = np.reshape(rectangle(-width / 2, -height / 2, width, height), (-1, 2))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = points @ np.array([[cos, sin], [-sin, cos]]) + (x + width / 2, y + height / 2)
    return [float(value) for value in turned.ravel()] if angle else rectangle(x, y, width, height)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> list[float]:
    """Return a polygon of the area of an ellipse with its center at (x, y), turned about it."""
    count = int(np.clip(2 * math.pi * max(radius_x, radius_y), MIN_POINTS, MAX_POINTS))
    turns = np.arange(count) * (2 * math.pi / count)
    grow = math.sqrt((2 * math.pi / count) / math.sin(2 * math.pi / count))  # so that the areas are equal
    u, v = radius_x * grow * np.cos(turns), radius_y * grow * np.sin(turns)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [float(each) for each in np.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=1).ravel()]


def union(parts: Sequence[Segmentation], image: ImageFile) -> Segmentation:
    """Join the parts of one object: polygons stay polygons, otherwise the result is an RLE.

    Raises:
        UserError: a part is malformed or belongs to an image of another size.
    """
    polygons = [part for part in parts if isinstance(part, list)]
    if len(polygons) == len(parts):
        return [each for part in polygons for each in part]
    if len(parts) == 1:
        return parts[0]
    rle = mask_util.merge([segmentation_to_rle(part, image.height, image.width) for part in parts])
    return {"size": [image.height, image.width], "counts": rle["counts"].decode("ascii")}


def mask_of(segmentation: Segmentation, image: ImageFile) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a segmentation within its bounding box.

    Returns:
        (h, w) bool, and (x, y) of its first pixel in the image; (0, 0) bool of a mask without pixels.
    """
    mask = decode_segmentation(segmentation, image.height, image.width)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return np.zeros((0, 0), dtype=bool), (0, 0)
    x, y = int(columns[0]), int(rows[0])
    return mask[y : rows[-1] + 1, x : columns[-1] + 1], (x, y)


def to_one_polygon(segmentation: Segmentation, image: ImageFile) -> list[float]:
    """Return one polygon with the same pixels inside of the image; parts and holes are connected by bridges."""
    if isinstance(segmentation, list) and len(segmentation) == 1:
        xs, ys = segmentation[0][::2], segmentation[0][1::2]
        if min(xs) >= 0 and min(ys) >= 0 and max(xs) <= image.width and max(ys) <= image.height:
            return segmentation[0]
    rings = mask_to_rings(*mask_of(segmentation, image))
    return flat(join_rings([each for outer, holes in rings for each in (outer, *holes)]))


def flat(ring: np.ndarray) -> list[float]:
    """Convert a ring (K, 2) to [x0, y0, x1, y1, ...]."""
    return [float(value) for value in ring.ravel()]
