"""Augmentations of colour and light: blends of an image with something else (fvcore's ``BlendTransform``)."""

from __future__ import annotations

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from detectron2.data.transforms.augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]

# The weights of red, green and blue in a grey value (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Principal components of ImageNet's RGB values, in parts of the range [0, 1] (Krizhevsky et al. 2012, section 4.1, with
# the numbers that PyTorch's and Torch's ImageNet training code has in use).
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
PCA_VALUES = (0.2175, 0.0188, 0.0045)


class _RandomIntensity(Augmentation):
    """Draws a weight w; the image becomes w * image + (1 - w) * something that depends on the kind.

    Args:
        intensity_min: smallest weight; 0 leaves nothing of the image, 1 leaves it as it is.
        intensity_max: largest weight.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def _blend_with(self, other: np.ndarray | float) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=other, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomIntensity):
    """Blends with the image's mean value: a weight below 1 lowers the contrast, one above 1 raises it."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for ``image``."""
        return self._blend_with(image.mean())


class RandomBrightness(_RandomIntensity):
    """Blends with black: a weight below 1 darkens, one above 1 lightens."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for ``image``."""
        return self._blend_with(0)


class RandomSaturation(_RandomIntensity):
    """Blends an RGB image with its grey version: a weight below 1 takes colour away, one above 1 adds some."""

    def get_transform(self, image: np.ndarray) -> Transform:
        """The blend for ``image``, (H, W, 3) in RGB order.

        Raises:
            ValueError: the image does not have three channels.
        """
        _check_rgb(image)
        return self._blend_with(image.dot(LUMA)[:, :, None])


class RandomLighting(Augmentation):
    """Adds a random mixture of the principal components of ImageNet's colours to an RGB image.

    Args:
        scale: standard deviation of the mixture's weights, in units of the image's values.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_transform(self, image: np.ndarray) -> Transform:
        """The colour to add to ``image``, (H, W, 3) in RGB order.

        Raises:
            ValueError: the image does not have three channels.
        """
        _check_rgb(image)
        weights = np.random.normal(scale=self.scale, size=3)
        colour = np.array(PCA_VECTORS) @ (weights * PCA_VALUES)  # (3,)
        return BlendTransform(src_image=colour, src_weight=1.0, dst_weight=1.0)


def _check_rgb(image: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an RGB image of shape (H, W, 3), got {image.shape}.")
