"""Augmentations that flip and rotate, and the random application of another augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import HFlipTransform, NoOpTransform, Transform, VFlipTransform

from detectron2._errors import InvalidArgumentError
from detectron2.data.transforms.augmentation import Augmentation, as_augmentation
from detectron2.data.transforms.transform import RotationTransform

__all__ = ["RandomApply", "RandomFlip", "RandomRotation"]


class RandomApply(Augmentation):
    """Apply an augmentation or transform with a given probability.

    Args:
        tfm_or_aug: the augmentation or transform.
        prob: in [0, 1].

    Raises:
        ValueError: ``prob`` is not in [0, 1].
    """

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise InvalidArgumentError(f"prob must be in [0, 1], got {prob}.")
        self.aug = as_augmentation(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform for an input, or one that does nothing."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        fixed = getattr(self.aug, "tfm", None)
        return self.aug.get_transform(*args) if fixed is None else fixed

    def __call__(self, aug_input: Any) -> Transform:
        """Apply it to ``aug_input`` in place, or not; return the chosen transform."""
        return self.aug(aug_input) if self._rand_range() < self.prob else NoOpTransform()

    def __repr__(self) -> str:
        return f"RandomApply({self.aug}, prob={self.prob})"

    __str__ = __repr__


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with a given probability.

    Args:
        prob: in [0, 1].
        horizontal: whether left and right are swapped.
        vertical: whether top and bottom are swapped.

    Raises:
        ValueError: both directions or none are set.
    """

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        if horizontal == vertical:
            raise InvalidArgumentError(
                f"RandomFlip needs one direction, got horizontal={horizontal}, vertical={vertical}; use two for both."
            )
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the flip of ``image``, or a transform that does nothing."""
        h, w = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class RandomRotation(Augmentation):
    """Rotate counterclockwise by a random angle.

    Args:
        angle: in degrees: (min, max) for ``"range"``, the choices for ``"choice"``; one number is that angle.
        expand: whether the result is large enough for the whole rotated image.
        center: two (x, y), relative to width and height: the range, or the choices, of the center of rotation. A single
            (x, y) is that center, None the center of the image; without effect if ``expand``.
        sample_style: ``"range"`` or ``"choice"``.
        interp: one of OpenCV's interpolations; None for linear.

    Raises:
        ValueError: the sample style is unknown, or the angles or centers are invalid for it.
    """

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Any] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        if sample_style not in ("range", "choice"):
            raise InvalidArgumentError(f"sample_style must be 'range' or 'choice', got {sample_style!r}.")
        self.is_range = sample_style == "range"
        if isinstance(angle, int | float):
            angle = (angle, angle)
        if center is not None and isinstance(center[0], int | float):
            center = (center, center)
        for what, values in (("angle", angle), ("center", center)):
            if self.is_range and values is not None and len(values) != 2:
                raise InvalidArgumentError(f"sample_style 'range' needs two values (min, max) of {what}, got {values}.")
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
        """Return the rotation of ``image`` by a random angle."""
        h, w = image.shape[:2]
        angle = np.random.uniform(self.angle[0], self.angle[1]) if self.is_range else np.random.choice(self.angle)
        center = self._draw_center(h, w)
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, float(angle), self.expand, center, self.interp)
