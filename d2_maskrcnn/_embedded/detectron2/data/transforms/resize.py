"""Augmentations that resize."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from detectron2._errors import InvalidArgumentError
from detectron2.data.transforms.augmentation import Augmentation
from detectron2.data.transforms.transform import ResizeTransform

__all__ = ["RandomResize", "Resize", "ResizeScale", "ResizeShortestEdge"]

BILINEAR = Image.Resampling.BILINEAR


def _resize(image: np.ndarray, shape: tuple[int, int], interp: int) -> Transform:
    h, w = image.shape[:2]
    new_h, new_w = shape
    return ResizeTransform(h, w, new_h, new_w, interp)


class Resize(Augmentation):
    """Resize to a fixed size.

    Args:
        shape: (h, w), or one number for both, in pixels.
        interp: one of PIL's interpolations.
    """

    def __init__(self, shape: int | tuple[int, int], interp: int = BILINEAR) -> None:
        self.shape = (shape, shape) if isinstance(shape, int) else (shape[0], shape[1])
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resizing of ``image`` to ``shape``."""
        return _resize(image, self.shape, self.interp)


class RandomResize(Augmentation):
    """Resize to a random size of a list.

    Args:
        shape_list: the choices (h, w).
        interp: one of PIL's interpolations.
    """

    def __init__(self, shape_list: Sequence[tuple[int, int]], interp: int = BILINEAR) -> None:
        self.shape_list = shape_list
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resizing of ``image`` to one of the sizes."""
        return _resize(image, self.shape_list[np.random.choice(len(self.shape_list))], self.interp)


class ResizeShortestEdge(Augmentation):
    """Scale the shorter edge to a given length, unless the longer edge would exceed ``max_size``.

    Args:
        short_edge_length: in pixels: the choices for ``"choice"``, (min, max), both included, for ``"range"``. A length
            of 0 keeps the size of the image.
        max_size: maximum length of the longer edge, in pixels.
        sample_style: ``"range"`` or ``"choice"``.
        interp: one of PIL's interpolations.

    Raises:
        ValueError: the sample style is unknown, or the lengths are invalid for it.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = BILINEAR,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise InvalidArgumentError(f"sample_style must be 'range' or 'choice', got {sample_style!r}.")
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            # Twice also for "choice": Detectron2 chooses from two equal lengths, which uses up one random number.
            short_edge_length = (short_edge_length, short_edge_length)
        if self.is_range and len(short_edge_length) != 2:
            raise InvalidArgumentError(
                f"sample_style 'range' needs two short_edge_length values (min, max), got {short_edge_length}."
            )
        if len(short_edge_length) == 0:
            raise InvalidArgumentError("short_edge_length is empty; expected at least one length.")
        self.short_edge_length = short_edge_length
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def _draw_length(self) -> int:
        if self.is_range:
            return int(np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1))
        return int(np.random.choice(self.short_edge_length))

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resizing of ``image`` to a random length."""
        h, w = image.shape[:2]
        length = self._draw_length()
        if length == 0:
            return NoOpTransform()
        return _resize(image, self.get_output_shape(h, w, length, self.max_size), self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return the (h, w) that an image of (oldh, oldw) is resized to, each rounded half up.

        >>> ResizeShortestEdge.get_output_shape(480, 640, 800, 1333)
        (800, 1067)
        """
        scale = short_edge_length / min(oldh, oldw)
        h, w = (short_edge_length, scale * oldw) if oldh < oldw else (scale * oldh, short_edge_length)
        if max(h, w) > max_size:
            scale = max_size / max(h, w)
            h, w = h * scale, w * scale
        return int(h + 0.5), int(w + 0.5)


class ResizeScale(Augmentation):
    """Fit an image into a target size times a random factor, keeping its aspect ratio (large-scale jitter).

    Args:
        min_scale: smallest factor.
        max_scale: largest factor.
        target_height: in pixels.
        target_width: in pixels.
        interp: one of PIL's interpolations.
    """

    def __init__(
        self, min_scale: float, max_scale: float, target_height: int, target_width: int, interp: int = BILINEAR
    ) -> None:
        self.min_scale = min_scale
        self.max_scale = max_scale
        self.target_height = target_height
        self.target_width = target_width
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the resizing of ``image`` by a random factor."""
        h, w = image.shape[:2]
        factor = np.random.uniform(self.min_scale, self.max_scale)
        scale = min(self.target_height * factor / h, self.target_width * factor / w)
        new_h, new_w = (int(size) for size in np.round(np.multiply((h, w), scale)))
        return ResizeTransform(h, w, new_h, new_w, self.interp)
