"""Colors for drawing."""

from __future__ import annotations

import colorsys

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_COUNT = 80
_GOLDEN = 0.618033988749895  # step around the color wheel, which keeps consecutive colors apart
_SHADES = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.7))  # saturation and value, alternating


def _table() -> np.ndarray:
    rows = [colorsys.hsv_to_rgb(index * _GOLDEN % 1, *_SHADES[index % len(_SHADES)]) for index in range(_COUNT)]
    return np.array(rows, dtype=np.float32)


_COLORS = _table()  # (80, 3) RGB in [0, 1]


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return a table of colors.

    Args:
        rgb: whether the order is RGB instead of BGR.
        maximum: of the values: 255 or 1.

    Returns:
        (80, 3) float32.

    Raises:
        ValueError: ``maximum`` is something else.
    """
    if maximum not in (1, 255):
        raise ValueError(f"maximum must be 1 or 255, got {maximum}")
    table = _COLORS * maximum
    return table if rgb else table[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """Return a random color of :func:`colormap`, (3,) float32, by NumPy's global generator."""
    return colormap(rgb, maximum)[np.random.randint(_COUNT)]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """Return ``N`` different colors of :func:`colormap` in random order.

    Raises:
        ValueError: ``N`` exceeds the number of colors.
    """
    if N > _COUNT:
        raise ValueError(f"N is {N}, but there are {_COUNT} colors")
    table = colormap(rgb, maximum)
    return [table[index] for index in np.random.permutation(_COUNT)[:N]]
