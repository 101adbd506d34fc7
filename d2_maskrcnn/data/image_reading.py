"""Decode image files in one way for training, evaluation, prediction, inspection and the demo.

How pixels become 8-bit RGB:

* orientation: the image is turned upright as its EXIF or XMP orientation says (HEIC: as its container says);
* animations and multi-page files: the first frame;
* alpha and transparent palette entries: composited on white, as image viewers show them;
* grayscale and bilevel: the value in all three channels; palettes and CMYK: converted by Pillow, without ICC profiles;
* 16 bits per channel: scaled from 0..65535 to 0..255 and rounded (a 32-bit integer image without a value above 255 is
  taken as 8-bit);
* floating point: 0..1 is scaled to 0..255, or taken as 0..255 if any value is above 1; NaN becomes 0.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from d2_maskrcnn.data.raw_images import RAW, is_unknown_tiff, read_stored, tiff_size, to_rgb
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import FORMATS, QUARTER_TURNS, Source, load_upright, open_image, orientation

COLOR = 2**32  # added to the numbers of colors, to distinguish them from gray values
STRIP_PIXELS = 4_000_000  # converted at a time, so that a large image needs little more than its own memory


def read_image(source: Source, channels: str = "RGB", max_pixels: int | None = None) -> np.ndarray:
    """Decode an image into uint8 pixels; the module's docstring describes the conversions.

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
    try:
        with open_image(source, max_pixels) as image:
            return pillow_to_array(image, channels)
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
        hint = "; if it is a TIFF of several channels, INPUT.FORMAT RAW reads it"
        raise UserError(f"{error}{hint}") from error.__cause__


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
    return _to_array(load_upright(image), channels)


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


def image_size(source: Source) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image, from the file's header.

    A PNG with its orientation behind the pixels is reported as stored: finding that would need decoding it.

    Raises:
        UserError: as in :func:`read_image`, as far as the header shows it.
    """
    try:
        return _size_in_header(source)
    except UserError as error:
        if not is_unknown_tiff(source, error):
            raise
        return tiff_size(source)


def _size_in_header(source: Source) -> tuple[int, int]:
    with open_image(source) as image:
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
    """Return whether a file name has the suffix of one of ``FORMATS``."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) in FORMATS


def _to_array(image: Image.Image, channels: str) -> np.ndarray:
    """Convert a loaded image of any mode, a strip of rows at a time: (H, W, 3) uint8."""
    convert = _converter(image)
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        return _packed(convert(image), channels).copy()
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = _packed(convert(strip), channels)
    return pixels


def _packed(image: Image.Image, channels: str) -> np.ndarray:
    """Return an RGB image's pixels as a read-only (H, W, 3) uint8 array; Pillow swaps channels as it packs them."""
    return np.frombuffer(image.tobytes("raw", channels), dtype=np.uint8).reshape(image.height, image.width, 3)


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what converts (a strip of) the image to mode RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        scale = _scale(image)
        return lambda strip: _from_wide(strip, scale)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white
    return lambda strip: strip.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
    if layer.getchannel("A").getextrema() == (255, 255):  # opaque
        return layer.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _from_wide(image: Image.Image, scale: float) -> Image.Image:
    """Scale a grayscale image of more than 8 bits to 0..255; Pillow's own conversion would clip it."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0)
    return Image.fromarray(np.clip(np.floor(values * scale + 0.5), 0, 255).astype(np.uint8)).convert("RGB")


def _scale(image: Image.Image) -> float:
    """Return the factor from the values of a grayscale image of more than 8 bits to 0..255."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # Pillow opens some 16-bit images as "I"
        return 1 / 257
    highest = float(np.fmax.reduce(np.asarray(image), axis=None))  # fmax ignores NaN
    if image.mode == "F":
        return 1.0 if highest > 1 else 255.0
    return 1 / 257 if highest > 255 else 1.0
