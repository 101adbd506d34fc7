"""Windows of an image, and masks that are stored as the bitmap of a window (crops)."""

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Columns x0 to x1 and rows y0 to y1 of an image, both ends exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window in an (H, W, ...) array."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def shifted(self, x: int, y: int) -> "Window":
        """Return the window moved by x columns and y rows."""
        return Window(self.x0 + x, self.y0 + y, self.x1 + x, self.y1 + y)

    def inside(self, outer: "Window") -> "Window":
        """Return the window in the frame of one that contains it."""
        return self.shifted(-outer.x0, -outer.y0)

    def intersection(self, other: "Window") -> "Window":
        """Return the common part of two windows; it is empty where they do not overlap."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        return Window(x0, y0, max(x0, min(self.x1, other.x1)), max(y0, min(self.y1, other.y1)))


EMPTY_WINDOW = Window(0, 0, 0, 0)

Crop = tuple[Window, np.ndarray]  # a mask: its window, and its (h, w) pixels there, uint8 in {0, 1}


def restrict(crop: Crop, window: Window) -> Crop:
    """Return the part of a mask inside a window."""
    inside = crop[0].intersection(window)
    return inside, crop[1][inside.inside(crop[0]).slices]


def common_pixels(a: Crop, b: Crop) -> int:
    """Count the pixels that two masks have in common."""
    return int(np.count_nonzero(restrict(a, b[0])[1] & restrict(b, a[0])[1]))
