"""The canvas that a Visualizer draws on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["VisImage"]


class VisImage:
    """An image under a matplotlib axis whose units are the image's pixels.

    Args:
        img: (H, W, 3) RGB in [0, 255].
        scale: how much larger the result is than ``img``.

    Attributes:
        fig, ax, canvas: matplotlib's. width, height: of ``img``, in pixels.
    """

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        self.img, self.scale = img, scale
        self.height, self.width = img.shape[:2]
        self._setup_figure(img)

    def _setup_figure(self, img: np.ndarray) -> None:
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # The canvas drops fractions of pixels; the small excess keeps the division by dpi from dropping a whole one.
        sides = (side * self.scale + 0.01 for side in (self.width, self.height))
        self.fig.set_size_inches([side / self.dpi for side in sides])
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Draws over ``img`` ((H, W, 3) RGB in [0, 255]) from now on."""
        self.ax.imshow(
            img.clip(0, 255).astype("uint8"), extent=(0, self.width, self.height, 0), interpolation="nearest"
        )

    def save(self, filepath: str | Path) -> None:
        """Writes the image; the suffix says in which format (png, jpg, pdf, svg, ...)."""
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """(H * scale, W * scale, 3) uint8 RGB."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[:, :, :3].copy()
