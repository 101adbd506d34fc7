"""Open image files by an allow-list of formats, within limits, and turn them upright.

Both engines read images through it.
"""

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from d2_maskrcnn.errors import UserError

with contextlib.suppress(ImportError):  # an optional package that lets Pillow read HEIC
    from pillow_heif import register_heif_opener

    register_heif_opener()

Source = str | os.PathLike[str] | bytes

# Pillow's names. Only decoders of plain raster formats: EPS, for example, would run Ghostscript on the file.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
FORMAT_NAMES = "JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, AVIF or HEIC"
MAX_PIXELS = 178_000_000  # Pillow's own default limit is 179 million; decoded to RGB these are 534 MB
MAX_TILED_PIXELS = 357_000_000  # for images that are processed by tiles; Pillow decodes no more

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
    name = "the image data" if isinstance(source, bytes) else os.fspath(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else _regular_file(os.fspath(source))
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    Image.init()
    formats = [each for each in FORMATS if each in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about large images and odd metadata
            with Image.open(file, formats=formats) as image:
                _check_pixels(name, image, limit)
                yield image
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not a readable image; expected {FORMAT_NAMES}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: {_too_many_pixels(limit)}") from error
    except MemoryError as error:
        raise UserError(f"{name}: not enough memory to decode it") from error
    # Pillow's decoders raise anything from KeyError to RuntimeError on damaged files.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise UserError(f"{name}: not a readable image, corrupt or truncated ({reason}); copy it again") from error


def _regular_file(name: str) -> str:
    """Return ``name`` if it is a readable regular file (or a link to one); opening a FIFO would block."""
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


def _check_pixels(name: str, image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise UserError(f"{name}: {width}x{height} pixels, {_too_many_pixels(max_pixels)}")


def _too_many_pixels(max_pixels: int) -> str:
    limit = max_pixels / 1e6
    hint = "scale it down, or predict by tiles" if max_pixels < MAX_TILED_PIXELS else "cut it into several images"
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
