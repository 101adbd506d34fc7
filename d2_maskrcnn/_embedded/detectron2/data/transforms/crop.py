"""Augmentations that crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fvcore.transforms.transform import CropTransform, PadTransform, Transform, TransformList

from detectron2._errors import InvalidArgumentError
from detectron2.data.transforms.augmentation import Augmentation
from detectron2.data.transforms.transform import ExtentTransform

__all__ = ["FixedSizeCrop", "RandomCrop", "RandomExtent"]

CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


class RandomCrop(Augmentation):
    """Crop a rectangle at a random position.

    Args:
        crop_type: meaning of ``crop_size``:
            ``"relative"``: shares of the image's height and width;
            ``"relative_range"``: the shares are random between the given ones and 1;
            ``"absolute"``: pixels, or the size of the image if that is less;
            ``"absolute_range"``: height and width are random between crop_size[0] and crop_size[1] pixels.
        crop_size: two numbers.

    Raises:
        ValueError: the type is unknown, or the sizes are invalid for it.
    """

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        if crop_type not in CROP_TYPES:
            raise InvalidArgumentError(f"crop_type must be one of {', '.join(CROP_TYPES)}, got {crop_type!r}.")
        if len(crop_size) != 2 or min(crop_size) <= 0:
            raise InvalidArgumentError(f"crop_size must be two positive numbers, got {crop_size}.")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise InvalidArgumentError(f"crop_size of an absolute_range crop is (min, max), got {crop_size}.")
        self.crop_type = crop_type
        self.crop_size = crop_size

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the crop for ``image``."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) of the rectangle in pixels, for an image of (h, w); random for the two ranges.

        Raises:
            ValueError: a share of a relative crop exceeds 1.
        """
        h, w = image_size
        if self.crop_type.startswith("relative") and max(self.crop_size) > 1:
            raise InvalidArgumentError(f"crop_size of a {self.crop_type} crop must be in (0, 1], got {self.crop_size}.")
        if self.crop_type == "absolute":
            return min(int(self.crop_size[0]), h), min(int(self.crop_size[1]), w)
        if self.crop_type == "absolute_range":
            low, high = (int(size) for size in self.crop_size)
            crop_h = int(np.random.randint(min(h, low), min(h, high) + 1))
            return crop_h, int(np.random.randint(min(w, low), min(w, high) + 1))
        part: np.ndarray = np.asarray(self.crop_size, dtype=np.float32)
        if self.crop_type == "relative_range":
            part = part + np.random.rand(2) * (1 - part)
        return int(h * part[0] + 0.5), int(w * part[1] + 0.5)


class FixedSizeCrop(Augmentation):
    """Crop a rectangle of a fixed size at a random position; smaller images are padded at the right and bottom.

    Args:
        crop_size: (h, w) in pixels.
        pad: False leaves smaller images unpadded.
        pad_value: value of padded pixels.
        seg_pad_value: value of padded labels.
    """

    def __init__(
        self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0, seg_pad_value: int = 255
    ) -> None:
        self.crop_size = crop_size
        self.pad = pad
        self.pad_value = pad_value
        self.seg_pad_value = seg_pad_value

    def _crop(self, h: int, w: int) -> Transform:
        crop_h, crop_w = self.crop_size
        # One random number for both axes, scaled by the free space along each.
        place = np.random.uniform(0.0, 1.0)
        y0, x0 = (int(np.round(max(size - crop, 0) * place)) for size, crop in ((h, crop_h), (w, crop_w)))
        return CropTransform(x0, y0, min(crop_w, w), min(crop_h, h), w, h)

    def _pad(self, h: int, w: int) -> Transform:
        crop_h, crop_w = self.crop_size
        kept_h, kept_w = min(crop_h, h), min(crop_w, w)
        return PadTransform(0, 0, crop_w - kept_w, crop_h - kept_h, kept_w, kept_h, self.pad_value, self.seg_pad_value)

    def get_transform(self, image: np.ndarray) -> TransformList:
        """Return the crop and, unless switched off, the padding of ``image``."""
        h, w = image.shape[:2]
        return TransformList([self._crop(h, w)] + ([self._pad(h, w)] if self.pad else []))


class RandomExtent(Augmentation):
    """Crop a rectangle of random size and position, which may exceed the image; pixels outside are 0.

    Args:
        scale_range: (min, max) size of the rectangle, relative to the image.
        shift_range: (x, y): total range of the offset between the centers of rectangle and image, relative to the size
            of the image.
    """

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]) -> None:
        self.scale_range = scale_range
        self.shift_range = shift_range

    def get_transform(self, image: np.ndarray) -> Transform:
        """Return the rectangle of ``image`` at its original scale."""
        h, w = image.shape[:2]
        scale = np.random.uniform(self.scale_range[0], self.scale_range[1])
        shift_x = w * self.shift_range[0] * (np.random.rand() - 0.5)
        shift_y = h * self.shift_range[1] * (np.random.rand() - 0.5)
        center_x, center_y = w / 2 + shift_x, h / 2 + shift_y
        half_w, half_h = w * scale / 2, h * scale / 2
        source = (center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h)
        size = (int(source[3] - source[1]), int(source[2] - source[0]))
        return ExtentTransform(src_rect=source, output_size=size)
