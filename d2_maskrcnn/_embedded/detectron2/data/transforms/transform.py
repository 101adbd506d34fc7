"""Deterministic transforms in addition to fvcore's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform, TransformList
from PIL import Image

from detectron2._errors import InvalidArgumentError
from detectron2._names import lookup

__all__ = ["ColorTransform", "ExtentTransform", "PILColorTransform", "ResizeTransform", "RotationTransform"]

_TORCH_MODES = {
    Image.Resampling.NEAREST: "nearest",
    Image.Resampling.BILINEAR: "bilinear",
    Image.Resampling.BICUBIC: "bicubic",
}


def _to_pil(array: np.ndarray) -> Image.Image:
    """Convert an (H, W), (H, W, 1) or (H, W, 3) uint8 array to a PIL image."""
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _from_pil(image: Image.Image, ndim: int) -> np.ndarray:
    """Convert a PIL image to an array, with the channel axis of a one-channel (H, W, 1) array restored."""
    array = np.array(image)  # not `asarray`, whose result is read-only
    return array[:, :, None] if array.ndim < ndim else array


def _resize_with_pil(array: np.ndarray, new_h: int, new_w: int, interp: int) -> np.ndarray:
    """Resize a uint8 (H, W) or (H, W, C) array. Channels are independent: a fourth one is not treated as alpha."""
    if array.ndim == 2 or array.shape[2] in (1, 3):
        return _from_pil(_to_pil(array).resize((new_w, new_h), interp), array.ndim)
    planes = [_resize_with_pil(array[:, :, channel], new_h, new_w, interp) for channel in range(array.shape[2])]
    return np.stack(planes, axis=-1)


def _resize_with_torch(array: np.ndarray, new_h: int, new_w: int, interp: int) -> np.ndarray:
    """Resize an (H, W) or (H, W, C) array of any number type; the result has the same type.

    Raises:
        ValueError: the interpolation is not nearest, bilinear or bicubic.
    """
    if interp not in _TORCH_MODES:
        raise InvalidArgumentError(f"interpolation {interp} needs uint8 images; use nearest, bilinear or bicubic.")
    mode = _TORCH_MODES[Image.Resampling(interp)]
    floating = array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float32)
    planes = torch.from_numpy(np.ascontiguousarray(floating)).reshape(*array.shape[:2], -1)  # (H, W, C)
    planes = planes.permute(2, 0, 1)[None]  # (1, C, H, W)
    align = None if mode == "nearest" else False
    planes = torch.nn.functional.interpolate(planes, (new_h, new_w), mode=mode, align_corners=align)
    result = planes[0].permute(1, 2, 0).reshape(new_h, new_w, *array.shape[2:]).numpy()
    if np.issubdtype(array.dtype, np.integer):
        limits = np.iinfo(array.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max)
    return result.astype(array.dtype, copy=False)


class ResizeTransform(Transform):
    """Resize an image from (h, w) to (new_h, new_w).

    Args:
        h: height before, in pixels.
        w: width before, in pixels.
        new_h: height after, in pixels.
        new_w: width after, in pixels.
        interp: one of PIL's interpolations; None for bilinear. uint8 images are resized by PIL (with antialiasing),
            floating-point ones by PyTorch (without).
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp: int = Image.Resampling.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an (h, w) or (h, w, C) image; ``interp`` overrides the transform's own.

        Raises:
            ValueError: the image has another size than (h, w).
        """
        if img.shape[:2] != (self.h, self.w):
            raise InvalidArgumentError(f"expected an image of (h, w) {(self.h, self.w)}, got one of {img.shape[:2]}.")
        if (self.new_h, self.new_w) == (self.h, self.w):
            return img
        interp = self.interp if interp is None else interp
        resize = _resize_with_pil if img.dtype == np.uint8 else _resize_with_torch
        return resize(img, self.new_h, self.new_w, interp)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Scale (N, 2) points in place."""
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Take the label at the center of each new pixel; labels may have any type."""
        if segmentation.shape[:2] != (self.h, self.w):
            raise InvalidArgumentError(f"expected labels of (h, w) {(self.h, self.w)}, got {segmentation.shape[:2]}.")
        if segmentation.dtype == np.uint8:
            return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)
        rows = ((np.arange(self.new_h) + 0.5) * (self.h / self.new_h)).astype(np.intp)
        columns = ((np.arange(self.new_w) + 0.5) * (self.w / self.new_w)).astype(np.intp)
        return segmentation[rows[:, None], columns[None, :]]

    def inverse(self) -> Transform:
        """Return the transform back to (h, w)."""
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class ColorTransform(Transform):
    """Apply a function to the pixels of an image; points and labels stay.

    Args:
        op: maps an image array to one of the same shape.

    Raises:
        ValueError: ``op`` cannot be called.
    """

    def __init__(self, op: Callable[[Any], Any]) -> None:
        if not callable(op):
            raise InvalidArgumentError(f"op must be a function, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return ``op(img)``."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the points unchanged."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the labels unchanged."""
        return segmentation

    def inverse(self) -> Transform:
        """Return a transform that does nothing: colors are not restored."""
        return NoOpTransform()


class PILColorTransform(ColorTransform):
    """Apply a function of PIL images, such as the methods of ``PIL.ImageEnhance``, to the pixels of an image."""

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Return the result as an array."""
        return np.asarray(self.op(Image.fromarray(img)))


class ExtentTransform(Transform):
    """Crop the rectangle ``src_rect``, which may exceed the image, and scale it to ``output_size``.

    Args:
        src_rect: x0, y0, x1, y1 in pixels of the image.
        output_size: (h, w) of the result, in pixels.
        interp: one of PIL's interpolations.
        fill: value outside the image.
    """

    def __init__(
        self,
        src_rect: tuple[float, float, float, float],
        output_size: tuple[int, int],
        interp: int = Image.Resampling.BILINEAR,
        fill: int = 0,
    ) -> None:
        super().__init__()
        self.src_rect = src_rect
        self.output_size = output_size
        self.interp = interp
        self.fill = fill

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Crop and scale a uint8 (H, W) or (H, W, C) image."""
        h, w = self.output_size
        result = _to_pil(img).transform(
            size=(w, h),
            method=Image.Transform.EXTENT,
            data=self.src_rect,
            resample=self.interp if interp is None else interp,
            fill=self.fill,
        )
        return _from_pil(result, img.ndim)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map (N, 2) points to the frame of the result."""
        h, w = self.output_size
        x0, y0, x1, y1 = self.src_rect
        return (coords - [x0, y0]) * [w / (x1 - x0), h / (y1 - y0)]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Crop and scale labels by nearest-neighbor interpolation."""
        return self.apply_image(segmentation, interp=Image.Resampling.NEAREST)


class RotationTransform(Transform):
    """Rotate an image counterclockwise, by OpenCV.

    Args:
        h: height of the image, in pixels.
        w: width of the image, in pixels.
        angle: in degrees.
        expand: whether the result is large enough for the whole rotated image; otherwise its size is (h, w).
        center: (x, y) of the center of rotation; None for the center of the image.
        interp: one of OpenCV's interpolations; None for linear.
    """

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: tuple[float, float] | None = None,
        interp: int | None = None,
    ) -> None:
        import cv2  # imported here, since nothing else in this package needs OpenCV

        super().__init__()
        self.h, self.w, self.angle, self.expand = h, w, angle, expand
        self.image_center = np.array((w / 2, h / 2))
        self.center = (w / 2, h / 2) if center is None else center
        self.interp: int = cv2.INTER_LINEAR if interp is None else interp
        self.bound_w, self.bound_h = w, h
        if expand:
            cos, sin = abs(np.cos(np.deg2rad(angle))), abs(np.sin(np.deg2rad(angle)))
            self.bound_w, self.bound_h = np.rint([h * sin + w * cos, h * cos + w * sin]).astype(int).tolist()
        self.rm_coords = self._rotation_matrix()  # (2, 3), for points
        # The center of pixel (0, 0) is at (0.5, 0.5), but at (0, 0) in OpenCV.
        self.rm_image = self._rotation_matrix(offset=-0.5)  # (2, 3), for pixels

    def _rotation_matrix(self, offset: float = 0.0) -> np.ndarray:
        import cv2

        center = (float(self.center[0] + offset), float(self.center[1] + offset))
        matrix = cv2.getRotationMatrix2D(center, self.angle, 1)
        if self.expand:
            # The center of the image moves to the center of the larger result.
            moved = matrix @ [*(self.image_center + offset), 1]
            matrix[:, 2] += np.array([self.bound_w / 2, self.bound_h / 2]) + offset - moved
        return matrix

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Rotate an (h, w) or (h, w, C) image; pixels from outside it are 0.

        Raises:
            ValueError: the image has another size than (h, w).
        """
        import cv2

        if img.shape[:2] != (self.h, self.w):
            raise InvalidArgumentError(
                f"this transform rotates images of (h, w) {(self.h, self.w)}, got one of {img.shape[:2]}."
            )
        if img.size == 0 or self.angle % 360 == 0:
            return img
        flags = self.interp if interp is None else interp
        rotated = cv2.warpAffine(np.ascontiguousarray(img), self.rm_image, (self.bound_w, self.bound_h), flags=flags)
        return rotated[:, :, None] if rotated.ndim < img.ndim else rotated

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Rotate (N, 2) points."""
        coords = np.asarray(coords, dtype=float)
        if len(coords) == 0 or self.angle % 360 == 0:
            return coords
        return coords @ self.rm_coords[:, :2].T + self.rm_coords[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotate labels by nearest-neighbor interpolation."""
        import cv2

        if segmentation.dtype == bool:
            return self.apply_image(segmentation.astype(np.uint8), interp=cv2.INTER_NEAREST).astype(bool)
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> Transform:
        """Return the rotation back, with a crop to (h, w) if the result was larger.

        Raises:
            NotImplementedError: ``expand`` is False, so that corners are lost.
        """
        if not self.expand:
            raise NotImplementedError("a rotation with expand=False loses corners and has no inverse.")
        back = RotationTransform(self.bound_h, self.bound_w, -self.angle, True, None, self.interp)
        x0, y0 = (back.bound_w - self.w) // 2, (back.bound_h - self.h) // 2
        return TransformList([back, CropTransform(x0, y0, self.w, self.h)])


__getattr__ = lookup(__name__)
