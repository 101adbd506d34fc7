"""Augmentations of color: blends of an image with something else (fvcore's ``BlendTransform``)."""

from __future__ import annotations

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from detectron2._errors import InvalidArgumentError
from detectron2.data.transforms.augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]

# Weights of red, green and blue in the luma (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Principal components of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012, section 4.1; numbers from Torch's
# ImageNet training code).
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_VALUES = (0.2175, 0.0188, 0.0045)


class _RandomIntensity(Augmentation):
    """Choose a weight w and compute w * image + (1 - w) * x, where x depends on the subclass.

    Args:
        intensity_min: smallest weight; 0 replaces the image by x, 1 leaves it unchanged.
        intensity_max: largest weight.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _blend_with(self, other: np.ndarray | float) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomIntensity):
    """Blend with the mean value of the image: a weight below 1 lowers the contrast, above 1 raises it."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the blend for ``image``."""
        return self._blend_with(image.mean())


class RandomBrightness(_RandomIntensity):
    """Blend with black: a weight below 1 darkens, above 1 brightens."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the blend for ``image``."""
        return self._blend_with(0)


class RandomSaturation(_RandomIntensity):
    """Blend an RGB image with its grayscale version: a weight below 1 lowers the saturation, above 1 raises it."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the blend for ``image``, (H, W, 3) in RGB order.

        Raises:
            ValueError: the image does not have three channels.
        """
        _check_rgb(image)
        return self._blend_with(image.dot(LUMA)[:, :, None])


class RandomLighting(Augmentation):
    """Add a random mixture of the principal components of ImageNet's colors to an RGB image.

    Args:
        scale: standard deviation of the mixture's weights, in units of the image's values.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the addition of a color to ``image``, (H, W, 3) in RGB order.

        Raises:
            ValueError: the image does not have three channels.
        """
        _check_rgb(image)
        weights = np.random.normal(scale=self.scale, size=3)
        color = np.array(PCA_VECTORS) @ (weights * PCA_VALUES)  # (3,)
        return BlendTransform(src_image=color, src_weight=1.0, dst_weight=1.0)


def _check_rgb(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise InvalidArgumentError(f"expected an RGB image of shape (H, W, 3), got {image.shape}.")
