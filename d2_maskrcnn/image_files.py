"""Open image files by an allow-list of formats, within limits, and convert them to upright 8-bit RGB.

This plugin and the embedded engine read images through it. How pixels become 8-bit RGB:

* orientation: the image is turned upright as its EXIF or XMP orientation says (HEIC: as its container says);
* animations and multi-page files: the first frame;
* alpha and transparent palette entries: composited on white, as image viewers show them;
* grayscale and bilevel: the value in all three channels; palettes and CMYK: converted by Pillow, without ICC profiles;
* 16 bits per channel: scaled from 0..65535 to 0..255 and rounded (a 32-bit integer image without a value above 255 is
  taken as 8-bit);
* floating point: 0..1 is scaled to 0..255, or taken as 0..255 if any value is above 1; NaN becomes 0.
"""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from d2_maskrcnn.errors import UserError

with contextlib.suppress(ImportError):  # an optional package that lets Pillow read HEIC
    from pillow_heif import register_heif_opener

    register_heif_opener()

Source = str | os.PathLike[str] | bytes

# Pillow's names. Only decoders of plain raster formats: EPS, for example, would run Ghostscript on the file.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
CONTENT = "the image data"  # in messages, for an image that is not read from a file
FORMAT_NAMES = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF or HEIC"
MAX_PIXELS = 178_000_000  # decoded to RGB these are 534 MB
MAX_TILED_PIXELS = 357_000_000  # for images that are processed by tiles
HEIC_SUFFIXES = (".heic", ".heif")
STRIP_PIXELS = 4_000_000  # converted at a time, so that a large image needs little more than its own memory

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
QUARTER_TURNS = (5, 6, 7, 8)


class _PillowLimit:
    """Let Pillow open ``MAX_TILED_PIXELS`` inside a ``with`` block, in any number of threads.

    Its own limit, of the whole process, is 179 million pixels.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = MAX_TILED_PIXELS // 2
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                Image.MAX_IMAGE_PIXELS = self._before


_pillow_limit = _PillowLimit()  # Pillow refuses images of more than twice MAX_IMAGE_PIXELS


@contextlib.contextmanager
def open_image(source: Source, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file of one of ``FORMATS`` inside the ``with`` block; errors in the block are reported as well.

    Args:
        source: path of a file, or the content of one.
        max_pixels: limit of the image's size, up to ``MAX_TILED_PIXELS``; default: ``MAX_PIXELS``.

    Raises:
        UserError: the file is missing, not a regular file, not readable, in another format, corrupt, truncated, or has
            more than ``max_pixels`` pixels.
    """
    name = source_name(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else regular_file(os.fspath(source))
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]
    try:
        with decoding(name, file_advice(source, "; copy it again")), _pillow_limit, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images and odd metadata
            with Image.open(file, formats=formats) as image:
                _check_pixels(source, image, limit)
                yield image
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {_too_many_pixels(source, limit, MAX_TILED_PIXELS + 1)}") from error


@contextlib.contextmanager
def decoding(name: str, advice: str = "") -> Iterator[None]:
    """Report that Pillow cannot decode an image inside the ``with`` block.

    Args:
        name: of the image, for the message.
        advice: what to do about a damaged one.

    Raises:
        UserError: Pillow has failed; of ``Image.DecompressionBombError`` the caller knows more.
    """
    try:
        yield
    except (UserError, Image.DecompressionBombError):
        raise
    except Image.UnidentifiedImageError as error:
        if name.lower().endswith(HEIC_SUFFIXES) and "HEIF" not in Image.OPEN:
            raise UserError(f"{name}: HEIC needs a package: pip install pillow-heif") from error
        raise UserError(f"{name}: not a readable image; expected {FORMAT_NAMES}") from error
    except MemoryError as error:
        raise UserError(f"{name}: not enough memory to decode it") from error
    # Pillow's decoders raise anything from KeyError to RuntimeError on damaged files.
    except Exception as error:
        if "MAX_TEXT_CHUNK" in str(error) or "text chunks" in str(error):
            raise UserError(f"{name}: more metadata text than Pillow reads; save it without metadata") from error
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UserError(f"{name}: not a readable image, corrupt or truncated ({reason}){advice}") from error


def source_name(source: Source) -> str:
    """Return how messages name an image: its path, or ``CONTENT``."""
    return CONTENT if isinstance(source, bytes) else os.fspath(source)


def file_advice(source: Source, advice: str) -> str:
    """Return the advice for a file, and "" for the content of one, which may come from a client of a server."""
    return "" if isinstance(source, bytes) else advice


def regular_file(name: str) -> str:
    """Return ``name`` if it is a readable regular file (or a link to one); opening a FIFO would block.

    Raises:
        UserError: it is something else.
    """
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"{name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a FIFO, device or socket"
        raise UserError(f"{name}: {what}; expected an image file")
    if not os.access(name, os.R_OK):
        raise UserError(f"{name}: may not be read; change its permissions")
    return name


def _check_pixels(source: Source, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(
            f"{source_name(source)}: {width}x{height} pixels, {_too_many_pixels(source, max_pixels, width * height)}"
        )


def _too_many_pixels(source: Source, max_pixels: int, pixels: int) -> str:
    limit = max_pixels / 1e6
    if pixels > MAX_TILED_PIXELS:
        hint = "scale it down" + file_advice(source, ", or save it as a TIFF file of tiles and predict by tiles")
    else:
        hint = "scale it down" + file_advice(source, ", or predict by tiles")
    return f"more than the limit of {limit:.0f} megapixels ({3 * limit:.0f} MB when decoded); {hint}"


def orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of an opened image, 1 to 8; None without readable EXIF data."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    # Damaged EXIF data, on which Pillow raises many kinds of exceptions, don't make the pixels unreadable.
    except Exception:
        return None


def load_upright(image: Image.Image) -> Image.Image:
    """Decode an opened image and turn it upright by its EXIF orientation."""
    if isinstance(image, TiffImageFile):
        image.filename = ""  # Pillow would map an uncompressed file with the sides of the upright image
    image.load()
    return turn_upright(image)


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of a loaded image. Pillow has applied and removed a TIFF's while loading."""
    method = _UPRIGHT.get(orientation(image))  # type: ignore[arg-type]  # None is not a key
    return image if method is None else image.transpose(method)


def to_pixels(image: Image.Image, channels: str = "RGB", scale: float | None = None) -> np.ndarray:
    """Convert a loaded image of any mode as the module's docstring says, a strip of rows at a time.

    Args:
        channels: their order, "RGB" or "BGR".
        scale: factor from the values of a grayscale image of more than 8 bits to 0..255, for a part of an image;
            default: that of :func:`value_scale`.

    Returns:
        (H, W, 3) uint8, C-contiguous and writable.
    """
    convert = _converter(image, scale)
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


def _converter(image: Image.Image, factor: float | None) -> Callable[[Image.Image], Image.Image]:
    """Return what converts (a strip of) the image to mode RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        scale = value_scale(image) if factor is None else factor
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
    with np.errstate(over="ignore"):  # of infinity
        scaled = np.floor(values * scale + 0.5)
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")


def value_scale(image: Image.Image) -> float:
    """Return the factor from the values of a grayscale image of more than 8 bits to 0..255."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # Pillow opens some 16-bit images as "I"
        return 1 / 257
    highest = float(np.fmax.reduce(np.asarray(image), axis=None))  # fmax ignores NaN
    if image.mode == "F":
        return 1.0 if highest > 1 else 255.0
    return 1 / 257 if highest > 255 else 1.0
