"""The mask of one instance, given as polygons, run-length encoding or bitmap."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_util

__all__ = ["GenericMask"]


class GenericMask:
    """A mask that can be read as a bitmap and as polygons, each computed at the first access.

    Args:
        mask_or_polygons: (H, W) array of 0 and 1; a list of polygons [x0, y0, x1, y1, ...]; or COCO's run-length
            encoding, compressed or not.
        height, width: of the image, in pixels.

    Raises:
        ValueError: it is something else, or of another size.
    """

    def __init__(self, mask_or_polygons: Any, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._mask: np.ndarray | None = None
        self._polygons: list[np.ndarray] | None = None
        self._rle: dict[str, Any] | None = None
        self._has_holes: bool | None = None
        if isinstance(mask_or_polygons, dict):
            self._rle = self._checked_rle(mask_or_polygons)
        elif isinstance(mask_or_polygons, list):
            self._polygons = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in mask_or_polygons]
        elif isinstance(mask_or_polygons, np.ndarray):
            if mask_or_polygons.shape != (height, width):
                raise ValueError(f"the mask has the size {mask_or_polygons.shape}, the image {(height, width)}")
            self._mask = mask_or_polygons.astype(np.uint8)
        else:
            raise ValueError(f"cannot make a mask of a {type(mask_or_polygons).__name__}: {mask_or_polygons!r}")

    def _checked_rle(self, rle: dict[str, Any]) -> dict[str, Any]:
        if "counts" not in rle or list(rle.get("size", ())) != [self.height, self.width]:
            raise ValueError(
                f"the run-length encoding has the keys {sorted(rle)} and the size {rle.get('size')}, the image is "
                f"{[self.height, self.width]}"
            )
        return mask_util.frPyObjects(rle, self.height, self.width) if isinstance(rle["counts"], list) else rle

    @property
    def mask(self) -> np.ndarray:
        """(H, W) uint8 of 0 and 1. If decoded from a run-length encoding, it is not stored, so that many masks need
        little memory.
        """
        if self._mask is not None:
            return self._mask
        if self._rle is not None:
            return mask_util.decode(self._rle)
        self._mask = self.polygons_to_mask(self.polygons)
        return self._mask

    @property
    def polygons(self) -> list[np.ndarray]:
        """Arrays [x0, y0, x1, y1, ...] of the contours, including those of holes."""
        if self._polygons is None:
            self._polygons, self._has_holes = self.mask_to_polygons(self.mask)
        return self._polygons

    @property
    def has_holes(self) -> bool:
        """Whether the mask has holes; False for masks given as polygons."""
        if self._has_holes is None:
            if self._mask is None and self._rle is None:
                self._has_holes = False
            else:
                _, self._has_holes = self.mask_to_polygons(self.mask)
        return self._has_holes

    def mask_to_polygons(self, mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
        """Return the contours of an (H, W) mask through pixel centers, and whether some of them are holes."""
        mask = np.ascontiguousarray(mask, dtype=np.uint8)
        contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        if hierarchy is None:
            return [], False
        polygons = [contour.reshape(-1).astype(np.float64) + 0.5 for contour in contours if contour.size >= 6]
        return polygons, bool((hierarchy.reshape(-1, 4)[:, 3] >= 0).any())

    def polygons_to_mask(self, polygons: list[np.ndarray]) -> np.ndarray:
        """Return (H, W) uint8: the pixels that at least one of the polygons covers."""
        if not polygons:
            return np.zeros((self.height, self.width), dtype=np.uint8)
        codes = mask_util.frPyObjects([list(map(float, polygon)) for polygon in polygons], self.height, self.width)
        return mask_util.decode(mask_util.merge(codes))

    def area(self) -> int:
        """Return the number of pixels."""
        return int(mask_util.area(self._rle)) if self._rle is not None else int(self.mask.sum())

    def bbox(self) -> np.ndarray:
        """Return the tight box, (4,) XYXY."""
        rle = self._rle if self._rle is not None else mask_util.encode(np.asfortranarray(self.mask))
        box = np.array(mask_util.toBbox(rle), dtype=np.float64)
        box[2:] += box[:2]
        return box
