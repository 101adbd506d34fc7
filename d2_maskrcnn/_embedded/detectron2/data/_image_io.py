"""Read images: EXIF orientation, color formats, and errors that name the file."""

from __future__ import annotations

import os

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import load_upright, open_image, to_pixels
from detectron2.utils.file_io import PathManager

__all__ = ["convert_PIL_to_numpy", "convert_image_to_rgb", "read_image"]

YUV = "YUV-BT.601"
# ITU-R BT.601, analog form: rows Y, U, V; columns R, G, B in the same range.
RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))
YUV_TO_RGB = ((1.0, 0.0, 1.13983), (1.0, -0.39465, -0.58060), (1.0, 2.03211, 0.0))


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a PIL image to an array.

    Args:
        image: of any mode.
        format: ``"BGR"``, ``"RGB"`` and ``"YUV-BT.601"`` are converted by :func:`d2_maskrcnn.image_files.to_pixels`,
            like the images that the plugin trains on: transparency is composited on white. Any other of PIL's modes
            (``"L"``, ...) is converted by PIL, after more than 8 bits are reduced to 8. None keeps the image's mode.

    Returns:
        (H, W, C) array: uint8 in [0, 255], float for YUV. ``"L"`` has C = 1; None may give (H, W).

    Raises:
        ValueError: PIL does not know the format.
    """
    if format is None:
        return np.array(image)
    if format in ("BGR", "RGB"):
        return to_pixels(image, format)
    if format == YUV:
        return np.dot(to_pixels(image) / 255.0, np.array(RGB_TO_YUV).T)
    if _is_wide(image.mode) and not _is_wide(format):  # PIL's own conversion clips at 255
        image = Image.fromarray(to_pixels(image))
    array = np.array(image.convert(format))  # not `asarray`, whose result is read-only
    return array[:, :, None] if format == "L" else array


def _is_wide(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert an array to RGB, the inverse of :func:`convert_PIL_to_numpy`.

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
    """Return the upright image in ``file_name``, completely decoded."""
    path = PathManager.get_local_path(file_name)
    if not os.path.lexists(path):
        raise FileNotFoundError(
            f"no image at {file_name!r}: check the dataset's image folder (DETECTRON2_DATASETS for built-in datasets)."
        )
    try:
        with open_image(path) as image:
            return load_upright(image)
    except UserError as error:
        raise OSError(f"cannot read the image {error}") from error


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image and rotate it upright by its EXIF orientation.

    Args:
        file_name: a path, or an address that iopath supports.
        format: see :func:`convert_PIL_to_numpy`.

    Returns:
        (H, W, C) array, uint8 in [0, 255] (float for YUV); possibly (H, W) if ``format`` is None.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file is not a regular file, of a format that is not allowed, broken, truncated, or too large.
        ValueError: the format is unknown.
    """
    file_name = str(file_name)
    image = _decode(file_name)
    try:
        return convert_PIL_to_numpy(image, format)
    except ValueError as error:
        raise ValueError(
            f"cannot convert {file_name!r} from mode {image.mode!r} to format {format!r}: {error}."
        ) from error
