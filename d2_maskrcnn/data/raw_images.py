"""Read images of any number of channels and bits with their values unchanged, and show them as 8-bit RGB.

A config with ``INPUT.FORMAT: RAW`` gives the model all channels of a file, in the file's order, as many as
``MODEL.PIXEL_MEAN`` has values:

* PNG and PPM of 8 and 16 bits, and TIFF of integers or floating point with one channel or with 8-bit colors, need no
  further package; other TIFFs (several channels of 16 bits, pages as channels, ImageJ, OME) need tifffile;
* an alpha channel counts as a channel; palettes become 3 channels, bilevel images one of 0 and 255;
* the image is turned upright as its EXIF orientation says;
* values are float32, which represents integers of up to 24 bits exactly; values that are not finite become 0.
"""

import os
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from d2_maskrcnn.data.tiff_files import TiffFile, turn_array
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import Source, file_advice, load_upright, open_image, orientation, source_name
from detectron2.config import CfgNode
from detectron2.data import transforms as T

RAW = "RAW"  # INPUT.FORMAT of images whose channels are not converted
SHOWN_PERCENTILES = (0.5, 99.5)  # of a channel, shown as black and as full brightness
SHOWN_SAMPLES = 2**20  # pixels of which the percentiles are computed
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def raw_channels(cfg: CfgNode) -> int:
    """Return the number of channels if a config's ``INPUT.FORMAT`` is ``RAW``; 0 for 8-bit color images."""
    return len(cfg.MODEL.PIXEL_MEAN) if cfg.INPUT.FORMAT == RAW else 0


def read_raw(source: Source, channels: int, max_pixels: int | None = None) -> np.ndarray:
    """Read the channels of an image file; the module's docstring describes what is read.

    Args:
        source: path of a file, or the content of one.
        channels: the number that the file must have.
        max_pixels: see :func:`~d2_maskrcnn.data.image_reading.read_image`.

    Returns:
        (H, W, channels) float32 in the file's own units, of the upright image.

    Raises:
        UserError: as in :func:`~d2_maskrcnn.data.image_reading.read_image`; tifffile is needed and not installed; or
            the file has another number of channels.
    """
    return check_raw(read_stored(source, max_pixels), channels, source_name(source))


def check_raw(image: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Return an image (H, W, C), or (H, W) for one channel, of any type of real numbers as (H, W, channels) float32.

    Raises:
        UserError: it has another number of channels, no pixels, no real numbers, or values outside of float32's range.
    """
    image = image[:, :, None] if image.ndim == 2 else image
    if image.ndim != 3 or 0 in image.shape or image.dtype.kind not in "buif":
        raise UserError(f"{name}: expected an (H, W, {channels}) image, got {image.dtype} of shape {image.shape}.")
    if image.shape[2] != channels:
        raise UserError(
            f"{name} has {image.shape[2]} channel{'s' * (image.shape[2] > 1)}, the model takes {channels} "
            "(MODEL.PIXEL_MEAN has one value per channel): convert it."
        )
    values = _as_float32(image)
    if image.dtype.kind == "f" and image.dtype.itemsize > 4 and np.any(np.isinf(values) & np.isfinite(image)):
        largest = np.abs(image[np.isfinite(image)]).max()
        raise UserError(
            f"{name}: the value {largest:.3g} of the type {image.dtype}; expected values up to {FLOAT32_MAX:.3g}, the "
            "largest float32: scale the image, or mark missing values by NaN."
        )
    return _zero_where_not_finite(values)


def _as_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _zero_where_not_finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def read_stored(source: Source, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file as (H, W, C) in the file's own type; see :func:`read_raw`."""
    try:
        with open_image(source, max_pixels) as image:
            if _is_exact(image):
                wide = isinstance(image, TiffImageFile) and image.tag_v2.get(ExifTags.Base.BitsPerSample) == (64,)
                pixels = _as_array(load_upright(image))
                if not (wide and np.isinf(pixels).any()):  # Pillow reduces float64 to float32
                    return pixels
            elif image.format != "TIFF":
                return _decode_wide(source, orientation(image) or 1)
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
    return TiffFile(source).read(max_pixels)


def stored_orientation(source: Source) -> int | None:
    """Return the EXIF orientation of an image file whose values Pillow decodes unchanged; None for other files."""
    try:
        with open_image(source) as image:
            return orientation(image) or 1 if _is_exact(image) else None
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
    return None


def _is_exact(image: Image.Image) -> bool:
    """Return whether Pillow decodes all values of an opened file; it reduces colors of 16 bits to 8."""
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))
        return getattr(image, "n_frames", 1) == 1 and (len(bits) == 1 or set(bits) == {8})
    if len(image.getbands()) == 1:
        return True
    tiles = getattr(image, "tile", [])  # codec, box, offset, arguments
    arguments = tiles[0][3] if tiles else ""
    wide_ppm = image.format == "PPM" and isinstance(arguments, tuple) and arguments[-1] > 255
    return not (wide_ppm or (isinstance(arguments, str) and ";16" in arguments) or image.format == "JPEG2000")


def _as_array(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    return np.atleast_3d(np.asarray(image.convert("L") if image.mode == "1" else image))


def _decode_wide(source: Source, turn: int) -> np.ndarray:
    """Decode colors of 16 bits, by OpenCV."""
    data = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else np.fromfile(source, np.uint8)
    try:
        pixels: Any = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        advice = file_advice(source, "; copy it again")
        raise UserError(f"{source_name(source)}: not a readable image, corrupt or truncated{advice}")
    pixels = np.atleast_3d(pixels)
    order = [2, 1, 0, *range(3, pixels.shape[2])] if pixels.shape[2] > 2 else [0]
    return turn_array(pixels[:, :, order], turn)


def is_unknown_tiff(source: Source, error: UserError) -> bool:
    """Return whether ``error`` of ``open_image`` says that Pillow does not know the layout of a TIFF file."""
    if not isinstance(error.__cause__, Image.UnidentifiedImageError):
        return False
    if isinstance(source, bytes):
        return source.startswith(_TIFF_SIGNATURES)
    with open(source, "rb") as file:
        return file.read(4) in _TIFF_SIGNATURES


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Show an image of any number of channels and bits as 8-bit RGB, for people.

    The first three channels are shown as red, green and blue, the only one as gray, two as red and green. Each is
    stretched linearly so that ``SHOWN_PERCENTILES`` of its values become 0 and 255.

    Args:
        image: (H, W, C) of any type of real numbers, C >= 1.

    Returns:
        (H, W, 3) uint8.
    """
    height, width, channels = image.shape
    shown = np.zeros((height, width, 3), np.uint8)
    step = max(1, height * width // SHOWN_SAMPLES)
    for index in range(min(channels, 3)):
        with np.errstate(over="ignore", invalid="ignore"):
            values = _zero_where_not_finite(_as_float32(image[:, :, index]))
            low, high = np.percentile(values.reshape(-1)[::step], SHOWN_PERCENTILES)
            shown[:, :, index] = np.clip((values - low) * (255 / max(high - low, 1e-6)) + 0.5, 0, 255)
    return shown[:, :, [0, 0, 0]] if channels == 1 else shown


def resize(
    image: np.ndarray, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize (H, W, 3) uint8 or (H, W, C) float32 with Pillow's antialiased bilinear filter.

    Args:
        box: x0, y0, x1, y1 of the part that is resized, in pixels; what is around it counts for the filter. Default:
            the whole image.
    """
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box))
    planes = [Image.fromarray(np.ascontiguousarray(image[:, :, index])) for index in range(image.shape[2])]
    return np.stack([np.asarray(each.resize((width, height), Image.Resampling.BILINEAR, box)) for each in planes], 2)


def apply_resize(transform: T.Transform, image: np.ndarray) -> np.ndarray:
    """Apply a transform to (H, W, C), uint8 or float32. Resizing differs from Detectron2's in two ways.

    It is antialiased for float32, and leaves at least 1 pixel of the shorter side, which is rounded to 0 for images
    thousands of times as long as wide; ``transform`` is changed to that size.
    """
    if not isinstance(transform, T.ResizeTransform):
        return transform.apply_image(image)
    transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
    if image.dtype != np.float32:
        return transform.apply_image(image)
    return resize(image, transform.new_h, transform.new_w)


class ImageInput(T.AugInput):
    """The input of augmentations that is an image only, uint8 or float32, resized by :func:`apply_resize`."""

    def transform(self, tfm: T.Transform) -> None:
        """Apply a transform to the image."""
        if isinstance(tfm, T.TransformList):
            for each in tfm.transforms:
                self.transform(each)
        else:
            self.image = apply_resize(tfm, self.image)


def check_augmentations(augmentations: Any) -> None:
    """Refuse augmentations that are defined for RGB colors only.

    Raises:
        UserError: one is.
    """
    for each in augmentations:
        inner = getattr(each, "aug", each)  # of RandomApply
        if isinstance(inner, (T.RandomSaturation, T.RandomLighting)):
            raise UserError(
                f"{type(inner).__name__} changes RGB colors, but INPUT.FORMAT is {RAW}: remove it from the "
                "augmentations (flips, crops, resizing, RandomBrightness and RandomContrast work with any channels)."
            )


def channel_statistics(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[float], list[float]]:
    """Compute ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` for ``INPUT.FORMAT: RAW``.

    Args:
        paths: the training images, all with the same number of channels.

    Returns:
        Mean and standard deviation of each channel over all pixels, in the files' units, with 6 digits.

    Raises:
        UserError: there is no image, or see :func:`read_raw`.
    """
    count, total, squares = 0, np.zeros(0), np.zeros(0)
    for path in paths:
        stored = read_stored(path)
        if not count:
            total, squares = np.zeros(stored.shape[2]), np.zeros(stored.shape[2])
        pixels = check_raw(stored, len(total), os.fspath(path)).reshape(-1, len(total)).astype(np.float64)
        count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    if not count:
        raise UserError("There are no images to compute the mean and the standard deviation of.")
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return [float(f"{value:.6g}") for value in mean], [float(f"{value:.6g}") for value in deviation]
