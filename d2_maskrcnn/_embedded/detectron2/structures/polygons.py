"""Rasterize polygons by COCO's rules, so that training targets equal what the tools of the dataset compute.

A polygon is a flat array [x0, y0, x1, y1, ...] in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import torch

from detectron2._errors import InvalidArgumentError

# Least side in pixels that a box is scaled from, so that the scale stays finite.
_MIN_SIDE = 0.1


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Return the area in square pixels of a polygon with corners ``x``, ``y``, each (K,), by the shoelace formula."""
    return 0.5 * float(np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def polygons_to_bitmask(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return (height, width) bool: the pixels that at least one of ``polygons`` covers."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    runs = coco_mask.frPyObjects([np.asarray(p, dtype=np.float64).tolist() for p in polygons], height, width)
    return coco_mask.decode(coco_mask.merge(runs)).astype(bool)


def rasterize_polygons_within_box(polygons: Sequence[np.ndarray], box: np.ndarray, mask_size: int) -> torch.Tensor:
    """Rasterize the part of polygons inside a box on a square grid.

    The polygons are scaled to the grid before they are rasterized, which is more exact than cropping a bitmap.

    Args:
        polygons: in pixels of the image.
        box: (4,) XYXY in the same frame.
        mask_size: cells along each side of the grid.

    Returns:
        (mask_size, mask_size) bool, on the CPU.
    """
    x0, y0, x1, y1 = np.asarray(box)
    scale_x = mask_size / max(x1 - x0, _MIN_SIDE)
    scale_y = mask_size / max(y1 - y0, _MIN_SIDE)
    moved = []
    for polygon in polygons:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)  # (K, 2): a copy
        points -= (x0, y0)
        points *= (scale_x, scale_y)
        moved.append(points.reshape(-1))
    return torch.from_numpy(polygons_to_bitmask(moved, mask_size, mask_size))


def check_polygons(instance: Any) -> list[np.ndarray]:
    """Convert the polygons of an instance to float64 arrays.

    Raises:
        ValueError: they are not a list, or a polygon has an odd number of values or fewer than three points.
    """
    if not isinstance(instance, (list, tuple)):
        raise InvalidArgumentError(f"PolygonMasks need a list of polygons per instance, got {type(instance).__name__}")
    arrays = [np.asarray(p.cpu() if isinstance(p, torch.Tensor) else p, dtype=np.float64).reshape(-1) for p in instance]
    for array in arrays:
        if len(array) % 2 or len(array) < 6:
            raise InvalidArgumentError(
                f"A polygon needs an even number of at least 6 values, got {len(array)}: {array.tolist()}"
            )
    return arrays


def check_one_box_each(boxes: torch.Tensor, count: int) -> None:
    """Raise ValueError unless there are ``count`` boxes."""
    if len(boxes) != count:
        raise InvalidArgumentError(f"crop_and_resize needs one box per mask, got {len(boxes)} boxes for {count} masks")
