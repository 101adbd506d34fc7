"""Decode windows of large image files, so that the whole image is never in memory.

This works for TIFF and BigTIFF files of strips or tiles. The strips or tiles that a window needs are copied into a
small TIFF file, which is decoded like any image: by what :func:`~d2_maskrcnn.data.image_reading.read_image` or
:func:`~d2_maskrcnn.data.raw_images.read_raw` uses.
"""

import copy
import io
import itertools
import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from d2_maskrcnn.data.raw_images import (
    check_raw,
    read_stored,
    resize,
    to_rgb,
)
from d2_maskrcnn.data.tiff_files import TiffFile, turn_array
from d2_maskrcnn.data.tiff_layout import TiffPage
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import (
    CONTENT,
    MAX_TILED_PIXELS,
    QUARTER_TURNS,
    Source,
    load_upright,
    open_image,
    regular_file,
    source_name,
    to_pixels,
    value_scale,
)
from d2_maskrcnn.structures.windows import Window

BLOCK_PIXELS = 2**18  # pixels of strips or tiles that are decoded at a time
CACHE_BYTES = 2**26  # of decoded blocks, or more if a single window needs more
BAND_PIXELS = 2**23  # pixels of the rows that are resized at a time
DRAWN_SIDE = 8192  # pixels of the longer side of an image that is reduced to be shown
# The smallest factor to 0..255, by Pillow's mode, of images whose largest value decides on the factor.
SMALLEST_SCALES = {"I": 1 / 257, "F": 1.0}

logger = logging.getLogger(__name__)


class WindowedImage:
    """A large image file, which is indexed like an array: ``image[y0:y1, x0:x1]`` decodes these pixels.

    Their values are those of the whole image as ``read_image`` or ``read_raw`` decodes it. Several threads may use it,
    and it can be sent to another process.

    Args:
        source: path of a TIFF file, or the content of one.
        pages: one page, or several that are the image's channels.
        turn: EXIF orientation, 1 to 8.
        raw_channels: number of channels that are not converted; 0 for 8-bit color.
        order: of colors, "RGB" or "BGR".
        by_tifffile: whether tifffile decodes the values that are not converted, even where Pillow could.

    Attributes:
        name: how messages name the image.
        shape: (H, W, C) of the upright image.
        by_columns: whether windows are decoded faster column by column than row by row.

    Raises:
        UserError: the first pixels cannot be decoded, or do not have ``raw_channels``.
    """

    def __init__(
        self,
        source: Source,
        pages: list[TiffPage],
        turn: int = 1,
        raw_channels: int = 0,
        order: str = "RGB",
        by_tifffile: bool = False,
    ) -> None:
        self._source, self._pages, self._turn, self._by_tifffile = source, pages, turn, by_tifffile
        self.raw_channels, self.order = raw_channels, order
        self.name = source_name(source)
        page = pages[0]
        self.by_columns = turn in QUARTER_TURNS
        self._block = _block_segments(page)
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._last: tuple[bytes, np.ndarray] = (b"", np.zeros(0))  # a part that was decoded, and its pixels
        self._lock = threading.RLock()
        self._scale = None if raw_channels else self._value_scale()
        first = self._decode_block(0, 0)
        channels = check_raw(first, raw_channels, self.name).shape[2] if raw_channels else 3
        self._block_bytes = first.nbytes
        size = (page.width, page.height) if self.by_columns else (page.height, page.width)
        self.shape = (*size, channels)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache, self._lock = OrderedDict(), threading.RLock()

    def reordered(self, order: str) -> "WindowedImage":
        """Return the image with its colors in another order, "RGB" or "BGR"."""
        other = copy.copy(self)
        other.order, other._last = order, (b"", np.zeros(0))
        return other

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Decode a window.

        Args:
            index: of rows and columns, without steps.

        Returns:
            (h, w, 3) uint8, or (h, w, raw_channels) float32.

        Raises:
            UserError: the file has changed or is corrupt there.
        """
        (y0, y1, _), (x0, x1, _) = index[0].indices(self.shape[0]), index[1].indices(self.shape[1])
        if self._turn in (2, 3, 6, 7):
            x0, x1 = self.shape[1] - x1, self.shape[1] - x0
        if self._turn in (3, 4, 7, 8):
            y0, y1 = self.shape[0] - y1, self.shape[0] - y0
        stored = Window(y0, x0, y1, x1) if self.by_columns else Window(x0, y0, x1, y1)
        return np.ascontiguousarray(turn_array(self._read(stored), self._turn))

    def resized(self, height: int, width: int) -> np.ndarray:
        """Resize the whole image by the antialiased bilinear filter that images are resized with for the model.

        Returns:
            (height, width, C) as in :meth:`__getitem__`; other than in the whole image, resized at once, values may
            be rounded differently, by 1 of 255.
        """
        if self.by_columns:
            height, width = width, height
        page = self._pages[0]
        scale = page.height / height
        step, margin = max(1, int(BAND_PIXELS / (scale * page.width))), max(scale, 1.0) + 1
        bands = []
        for top in range(0, height, step):
            bottom = min(top + step, height)
            y0 = max(0, math.floor(top * scale - margin))
            y1 = min(page.height, math.ceil(bottom * scale + margin))
            rows = self._read(Window(0, y0, page.width, y1))
            box = (0.0, top * scale - y0, float(page.width), min(bottom * scale - y0, y1 - y0))
            bands.append(resize(rows, bottom - top, width, box))
        return np.ascontiguousarray(turn_array(np.concatenate(bands), self._turn))

    def display(self) -> np.ndarray:
        """Decode the image for people, with the longer side reduced to ``DRAWN_SIDE`` if it is too large as a whole.

        Returns:
            (h, w, 3) uint8 RGB; see :func:`~d2_maskrcnn.data.raw_images.to_rgb` for other channels.
        """
        height, width, channels = self.shape
        if height * width > MAX_TILED_PIXELS or height * width * channels > 3 * MAX_TILED_PIXELS:
            factor = min(1.0, DRAWN_SIDE / max(height, width))
            size = (max(1, round(height * factor)), max(1, round(width * factor)))
            logger.warning("%s: %dx%d pixels are shown as %dx%d.", self.name, width, height, size[1], size[0])
            pixels = self.resized(*size)
        else:
            pixels = self[:, :]
        self.release()
        if self.raw_channels:
            return to_rgb(pixels)
        return pixels if self.order == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])

    def release(self) -> None:
        """Free the memory of the decoded pixels."""
        with self._lock:
            self._cache.clear()

    def _read(self, window: Window) -> np.ndarray:
        """Decode a window of the stored image, before its orientation is applied."""
        page, (rows, columns) = self._pages[0], self._block
        height, width = rows * page.segment[0], columns * page.segment[1]
        places = [
            (row, column)
            for row in range(window.y0 // height, -(-window.y1 // height))
            for column in range(window.x0 // width, -(-window.x1 // width))
        ]
        pixels = None
        for row, column in places:
            block = self._cached(row, column, len(places))
            if pixels is None:
                pixels = np.empty((window.y1 - window.y0, window.x1 - window.x0, block.shape[2]), block.dtype)
            place = Window(0, 0, block.shape[1], block.shape[0]).shifted(column * width, row * height)
            common = place.intersection(window)
            pixels[common.inside(window).slices] = block[common.inside(place).slices]
        assert pixels is not None, f"the window {window} is empty"
        return check_raw(pixels, self.raw_channels, self.name) if self.raw_channels else pixels

    def _cached(self, row: int, column: int, needed: int) -> np.ndarray:
        with self._lock:
            if (row, column) in self._cache:
                self._cache.move_to_end((row, column))
            else:
                self._cache[row, column] = self._decode_block(row, column)
                while len(self._cache) > max(needed, CACHE_BYTES // self._block_bytes):
                    self._cache.popitem(last=False)
            return self._cache[row, column]

    def _decode_block(self, row: int, column: int) -> np.ndarray:
        """Decode several segments together, to (h, w, C) of the file's type, or uint8 color."""
        planes = []
        for parts in self._parts(row, column):
            rows = [np.concatenate([self._decode(part) for part in each], axis=1) for each in parts]
            planes.append(np.concatenate(rows))
        return np.concatenate(planes, axis=2)

    def _decode(self, part: bytes) -> np.ndarray:
        if part == self._last[0]:  # such as tiles that are left out of the file
            return self._last[1]
        try:
            if self.raw_channels:
                pixels = TiffFile(part).read() if self._by_tifffile else read_stored(part)
            else:
                with open_image(part) as image:
                    pixels = to_pixels(load_upright(image), self.order, self._scale)
        except UserError as error:
            raise renamed(self.name, error) from error
        self._last = (part, pixels)
        return pixels

    def _parts(self, row: int, column: int) -> Iterator[list[list[bytes]]]:
        """Yield the TIFF files of a block of each page, see :meth:`TiffPage.parts`."""
        rows, columns = (slice(index * n, (index + 1) * n) for index, n in zip((row, column), self._block, strict=True))
        with open_source(self._source) as file:
            for page in self._pages:
                yield page.parts(file, rows, columns)

    def _value_scale(self) -> float | None:
        """Return the factor to 0..255 if it depends on the image's largest value; None for most kinds of images."""
        _, rows, columns = self._pages[0].sizes.shape
        scale = math.inf
        for row, column in itertools.product(range(-(-rows // self._block[0])), range(-(-columns // self._block[1]))):
            for part in itertools.chain.from_iterable(next(self._parts(row, column))):
                try:
                    with open_image(part) as image:
                        if image.mode not in SMALLEST_SCALES:
                            return None
                        scale = min(scale, value_scale(load_upright(image)))
                        if scale <= SMALLEST_SCALES[image.mode]:
                            return scale
                except UserError as error:
                    raise renamed(self.name, error) from error
        return scale


def open_source(source: Source) -> BinaryIO:
    """Open a file, or the content of one, for reading.

    Raises:
        UserError: the file is missing, not a regular file, or not readable.
    """
    return io.BytesIO(source) if isinstance(source, bytes) else open(regular_file(os.fspath(source)), "rb")


class ImageError(UserError):
    """Raised when a part of an image file cannot be decoded."""


def renamed(name: str, error: UserError) -> ImageError:
    """Return the error of decoding a part of a file with the file's name."""
    return ImageError(f"{name}: {str(error).removeprefix(CONTENT).lstrip(': ')}")


def _block_segments(page: TiffPage) -> tuple[int, int]:
    """Return how many rows and columns of segments have about ``BLOCK_PIXELS``, at least one."""
    height, width = page.segment
    if page.tiled:
        number = max(1, math.isqrt(BLOCK_PIXELS // (height * width)))
        return number, number
    return max(1, BLOCK_PIXELS // (height * width)), 1
