"""Augmentations that flip or rotate, and the one that applies another one by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform

from detectron2.data.transforms.augmentation import Augmentation, as_augmentation
from detectron2.data.transforms.transform import RotationTransform

__all__ = ["RandomApply", "RandomFlip", "RandomRotation"]


class RandomApply(Augmentation):
    """Applies an augmentation or transform with a given probability.

    Args:
        tfm_or_aug: what to apply.
        prob: in [0, 1].

    Raises:
        ValueError: ``prob`` is no probability.
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        self.aug = as_augmentation(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform for an input, or one that does nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        fixed = getattr(self.aug, "tfm", None)
        return self.aug.get_transform(*args) if fixed is None else fixed

    def __call__(self, aug_input: Any) -> Transform:
        """Applies it to ``aug_input`` in place, or not; returns the transform that was drawn."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()

    def __repr__(self) -> str:
        return f"RandomApply({self.aug}, prob={self.prob})"

    __str__ = __repr__


class RandomFlip(Augmentation):
    """Mirrors left-right or top-bottom with a given probability.

    Args:
        prob: in [0, 1].
        horizontal: mirror left-right.
        vertical: mirror top-bottom.

    Raises:
        ValueError: not exactly one direction is asked for.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise ValueError(
                f"a RandomFlip has one direction, got horizontal={horizontal}, vertical={vertical}; use two for both."
            )
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """The flip of ``image``, or nothing."""
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class RandomRotation(Augmentation):
    """Rotates counter-clockwise by a random angle.

    Args:
        angle: with ``"range"`` (min, max), with ``"choice"`` the angles to choose from; in degrees. One number is that
            angle.
        expand: make the result large enough for the whole rotated image.
        center: two (x, y), as parts of the width and height: the range, or the choices, of the point to rotate around.
            None means the image's centre; with ``expand`` the point makes no difference.
        sample_style: ``"range"`` or ``"choice"``.
        interp: one of OpenCV's interpolations; None means linear.

    Raises:
        ValueError: the sample style is unknown, or the angles or centres do not fit it.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[tuple[float, float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise ValueError(f"sample_style must be 'range' or 'choice', got {sample_style!r}.")
        self.is_range = sample_style == "range"
        if isinstance(angle, int | float):
            angle = (angle, angle)
        for what, values in (("angle", angle), ("center", center)):
            if self.is_range and values is not None and len(values) != 2:
                raise ValueError(f"sample_style 'range' needs two values (min, max) of {what}, got {values}.")
        self.angle = angle
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def _draw_center(self, h: int, w: int) -> tuple[float, float] | None:
        if self.center is None:
            return None
        if self.is_range:
            low, high = self.center
            x, y = np.random.uniform(low[0], high[0]), np.random.uniform(low[1], high[1])
        else:
            x, y = self.center[np.random.choice(len(self.center))]
        return w * x, h * y

    def get_transform(self, image: np.ndarray) -> Transform:
        """The rotation of ``image`` by one drawn angle."""
        h, w = image.shape[:2]
        angle = np.random.uniform(self.angle[0], self.angle[1]) if self.is_range else np.random.choice(self.angle)
        center = self._draw_center(h, w)
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, float(angle), self.expand, center, self.interp)
