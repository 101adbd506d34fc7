"""Decode image files in one way for training, evaluation, prediction, inspection and the demo.

How pixels become 8-bit RGB is described in :mod:`d2_maskrcnn.image_files`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from d2_maskrcnn.data.raw_images import RAW, is_unknown_tiff, read_raw, read_stored, to_rgb
from d2_maskrcnn.data.tiff_files import tiff_size
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import (
    FORMATS,
    HEIC_SUFFIXES,
    QUARTER_TURNS,
    Source,
    load_upright,
    open_image,
    orientation,
    to_pixels,
)

COLOR = 2**32  # added to the numbers of colors, to distinguish them from gray values


def read_image(source: Source, channels: str = "RGB", max_pixels: int | None = None) -> np.ndarray:
    """Decode an image into uint8 pixels; see :func:`d2_maskrcnn.image_files.to_pixels`.

    Args:
        source: path of a file, or the content of one.
        channels: their order, "RGB" or "BGR".
        max_pixels: limit of the image's size, up to ``image_files.MAX_TILED_PIXELS``; default: ``MAX_PIXELS`` there.

    Returns:
        (H, W, 3) uint8, C-contiguous and writable, of the upright image.

    Raises:
        UserError: the file is missing, not a regular file, not readable, in another format than ``FORMATS``, corrupt,
            truncated, or has more than ``max_pixels`` pixels.
        ValueError: unknown ``channels``.
    """
    if channels not in ("RGB", "BGR"):
        raise ValueError(f"channels {channels!r}; expected 'RGB' or 'BGR'")
    with _open_color(source, max_pixels) as image:
        return pillow_to_array(image, channels)


@contextlib.contextmanager
def _open_color(source: Source, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image that is to be converted to 8-bit RGB."""
    try:
        with open_image(source, max_pixels) as image:
            yield image
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
        hint = "; if it is a TIFF of several channels, INPUT.FORMAT RAW reads it"
        raise UserError(f"{error}{hint}") from error.__cause__


def check_layout(source: Source, channels: int) -> None:
    """Check that the reader of a model's images takes the layout of an image file.

    Args:
        channels: of images that are read by :func:`~d2_maskrcnn.data.raw_images.read_raw`; 0 for 8-bit color images.

    Raises:
        UserError: it does not; see :func:`read_image` and ``read_raw``.
    """
    if channels:
        read_raw(source, channels)
    else:
        with _open_color(source):
            pass


def read_display(source: Source, image_format: str = "RGB") -> np.ndarray:
    """Decode an image for people.

    Args:
        image_format: the config's ``INPUT.FORMAT``. Images of ``RAW``, and TIFFs that cannot be converted to 8 bits,
            are shown by :func:`~d2_maskrcnn.data.raw_images.to_rgb`, others as :func:`read_image` reads them.

    Returns:
        (H, W, 3) uint8 RGB, of the upright image.

    Raises:
        UserError: as in :func:`read_image`.
    """
    if image_format != RAW:
        try:
            with open_image(source) as image:
                return pillow_to_array(image)
        except UserError as error:
            if not is_unknown_tiff(source, error):
                raise
    return to_rgb(read_stored(source))


def pillow_to_array(image: Image.Image, channels: str = "RGB") -> np.ndarray:
    """Convert an image of any mode that Pillow has opened or made; see :func:`read_image`."""
    return to_pixels(load_upright(image), channels)


def read_labels(source: Source) -> np.ndarray:
    """Read an image whose pixels are numbers of objects or classes, unchanged.

    Returns:
        (H, W) int64: palette indices, gray values of up to 32 bits, or for colors 0 for black, and otherwise
        ``COLOR + red * 65536 + green * 256 + blue``.

    Raises:
        UserError: as in :func:`read_image`, or its pixels are floating point.
    """
    with open_image(source) as image:
        upright = load_upright(image)
        if upright.mode == "F":
            raise UserError(f"{'the mask' if isinstance(source, bytes) else source}: floating point; expected integers")
        if upright.mode in ("P", "L", "1", "I") or upright.mode.startswith("I;16"):
            return np.asarray(upright).astype(np.int64)
        if upright.mode in ("PA", "LA"):
            return np.asarray(upright)[:, :, 0].astype(np.int64)
        colors = np.asarray(upright.convert("RGB")).astype(np.int64) @ np.array([65536, 256, 1])
        return np.where(colors > 0, colors + COLOR, 0)


def palette_of(source: Source) -> list[tuple[int, int, int]]:
    """Return the colors (red, green, blue) of an image with a palette by their index; an empty list for other images.

    Raises:
        UserError: as in :func:`read_image`.
    """
    with open_image(source) as image:
        colors = image.getpalette("RGB") if image.mode == "P" else None
        flat = colors or []
        return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]


def image_size(source: Source, max_pixels: int | None = None) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image, from the file's header.

    A PNG with its orientation behind the pixels is reported as stored: finding that would need decoding it.

    Args:
        source: path of a file, or the content of one.
        max_pixels: see :func:`read_image`.

    Raises:
        UserError: as in :func:`read_image`, as far as the header shows it.
    """
    try:
        return _size_in_header(source, max_pixels)
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
        return tiff_size(source)


def _size_in_header(source: Source, max_pixels: int | None) -> tuple[int, int]:
    with open_image(source, max_pixels) as image:
        if isinstance(image, TiffImageFile):  # whose ``size`` is upright or not depending on Pillow's version
            width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        else:
            width, height = image.size
        # Pillow decodes a whole PNG to search for EXIF data behind its pixels.
        turned = (image.format != "PNG" or "exif" in image.info) and orientation(image) in QUARTER_TURNS
        return (height, width) if turned else (width, height)


class ImageSummary(NamedTuple):
    """Sizes and thumbnail of a decoded image file.

    Attributes:
        size: (width, height) in pixels of the upright image.
        stored_size: (width, height) of the image as stored, before its EXIF orientation is applied.
        thumbnail: (side, side) uint8 grayscale of the whole upright image, stretched to a square.
    """

    size: tuple[int, int]
    stored_size: tuple[int, int]
    thumbnail: np.ndarray


def summarize_image(source: Source, side: int = 16) -> ImageSummary:
    """Decode a whole image, a JPEG at an eighth of its resolution where that suffices, and reduce it to a thumbnail.

    Raises:
        UserError: as in :func:`read_image`, also for a file that ends too early.
    """
    width, height = image_size(source)
    try:
        return _summarize(source, width, height, side)
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
        return ImageSummary((width, height), (width, height), _thumbnail(Image.fromarray(read_display(source)), side))


def _summarize(source: Source, width: int, height: int, side: int) -> ImageSummary:
    with open_image(source) as image:
        turned = (image.size[0], image.size[1]) == (height, width) != (width, height)
        image.draft("L", (4 * side, 4 * side))
        pixels = Image.fromarray(pillow_to_array(image))
        if image.format == "PNG" and (pixels.height, pixels.width) == (width, height) != (height, width):
            width, height, turned = height, width, True  # its orientation is stored behind the pixels
    stored = (height, width) if turned else (width, height)
    return ImageSummary((width, height), stored, _thumbnail(pixels, side))


def _thumbnail(pixels: Image.Image, side: int) -> np.ndarray:
    return np.asarray(pixels.convert("L").resize((side, side), Image.Resampling.BOX))


def size_mismatch(name: str, actual: tuple[int, int], expected: tuple[int, ...]) -> str:
    """Describe an image whose size (width, height) differs from the annotation's."""
    text = f"{name} is {actual[0]}x{actual[1]}, the JSON says {expected[0]}x{expected[1]}"
    return text + (" (turned by its EXIF orientation?)" if actual == tuple(reversed(expected)) else "")


def is_image_name(path: str | os.PathLike[str]) -> bool:
    """Return whether a file name has the suffix of one of ``FORMATS``.

    HEIC counts even if the package that decodes it is missing, so that such images are reported and not left out.
    """
    suffix = Path(path).suffix.lower()
    return suffix in HEIC_SUFFIXES or Image.registered_extensions().get(suffix) in FORMATS
