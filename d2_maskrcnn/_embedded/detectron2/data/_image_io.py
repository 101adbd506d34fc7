"""Reading images: EXIF orientation, colour formats, and errors that name the file."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch
from PIL import Image

from detectron2.utils.file_io import PathManager

__all__ = ["apply_exif_orientation", "convert_PIL_to_numpy", "convert_image_to_rgb", "read_image"]

YUV = "YUV-BT.601"
# ITU-R BT.601, analogue form: rows are Y, U, V for columns R, G, B in the same range.
RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))
YUV_TO_RGB = ((1.0, 0.0, 1.13983), (1.0, -0.39465, -0.58060), (1.0, 2.03211, 0.0))

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on broken files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)
_WIDE_MODES = ("I", "F")  # and "I;16...": more than 8 bits for each value


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """The image turned upright as its EXIF data say; the same image where they say nothing or cannot be read."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except _DECODING_ERRORS:  # broken EXIF data do not make the image unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """An image of 16 bits per value reduced to its upper 8; any other one as it is.

    Pillow's own conversion would clip at 255 and leave a white image. An image of mode "I" is taken to have 16 bits
    where a value exceeds 255: that is how 16-bit greyscale PNGs are opened by some versions of Pillow.
    """
    if not (image.mode.startswith("I;16") or image.mode == "I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and values.max(initial=0) <= 255:
        return image
    return Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))


def _to_bgr(image: Image.Image) -> np.ndarray:
    # Swapping the bands inside Pillow gives contiguous memory, which the next transform would otherwise have to make.
    red, green, blue = image.convert("RGB").split()
    return np.array(Image.merge("RGB", (blue, green, red)))


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """A PIL image as an array.

    Args:
        image: of any mode. Where the format asks for it, 16 bits are reduced to 8 and transparency is dropped.
        format: ``"BGR"``, ``"YUV-BT.601"`` or one of PIL's modes (``"RGB"``, ``"L"``, ...); None keeps the image's
            mode.

    Returns:
        (H, W, C) array: uint8 in [0, 255], float for YUV. ``"L"`` has C = 1; None may give (H, W).

    Raises:
        ValueError: the format is unknown to PIL.
    """
    if format is None:
        return np.array(image)
    if not (format in _WIDE_MODES or format.startswith("I;16")):
        image = _to_8_bits(image)
    if format == "BGR":
        return _to_bgr(image)
    if format == YUV:
        return np.dot(np.asarray(image.convert("RGB")) / 255.0, np.array(RGB_TO_YUV).T)
    array = np.array(image.convert(format))  # not `asarray`, whose result is read-only
    return array[:, :, None] if format == "L" else array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """The reverse of :func:`convert_PIL_to_numpy`, for drawing.

    Args:
        image: (H, W, C) in ``format``.
        format: ``"BGR"``, ``"YUV-BT.601"`` or one of PIL's modes.

    Returns:
        (H, W, 3) uint8 RGB in [0, 255].
    """
    array = image.cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if format == YUV:
        return (np.dot(array, np.array(YUV_TO_RGB).T) * 255.0).clip(0, 255).astype(np.uint8)
    if format == "BGR":
        return array[:, :, ::-1].astype(np.uint8)
    height, width = array.shape[:2]
    return np.asarray(Image.frombytes(format, (width, height), array.astype(np.uint8).tobytes()).convert("RGB"))


def _decode(file_name: str) -> Image.Image:
    """The upright image in ``file_name``, wholly decoded."""
    with PathManager.open(file_name, "rb") as file:
        try:
            image = Image.open(file)
            image.load()
        except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
            raise OSError(
                f"cannot read the image {file_name!r}: {error}. Is it broken, cut short, or no image?"
            ) from error
        return apply_exif_orientation(image)


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Reads an image and turns it upright as its EXIF data say.

    Args:
        file_name: path, or an address that iopath knows.
        format: see :func:`convert_PIL_to_numpy`.

    Returns:
        (H, W, C) array, uint8 in [0, 255] (float for YUV); (H, W) possible where ``format`` is None.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is broken, cut short or no image.
        ValueError: the format is unknown.
    """
    file_name = str(file_name)
    try:
        image = _decode(file_name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no image at {file_name!r}: check the dataset's image folder (DETECTRON2_DATASETS for built-in datasets)."
        ) from error
    try:
        return convert_PIL_to_numpy(image, format)
    except ValueError as error:
        raise ValueError(
            f"cannot convert {file_name!r} from mode {image.mode!r} to format {format!r}: {error}."
        ) from error
