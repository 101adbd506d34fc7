"""Read TIFF files of several channels by tifffile, an optional package."""

import io
import logging
import os
from typing import Any

import numpy as np
from PIL import ExifTags

from d2_maskrcnn.errors import UserError, import_extra
from d2_maskrcnn.image_files import MAX_PIXELS, QUARTER_TURNS, Source, file_advice, source_name

_SEVERAL_IMAGES = ("generic", "shaped", "uniform")  # tifffile's kinds of series that are not parts of one image

logger = logging.getLogger(__name__)


def tiff_size(source: Source) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image in a TIFF file that Pillow cannot open.

    Raises:
        UserError: tifffile is not installed, or cannot read the file.
    """
    return TiffFile(source).size


def _log_for_debugging(record: logging.LogRecord) -> bool:
    """Pass a message of tifffile on at the level DEBUG: what matters is reported as a :class:`UserError`."""
    logger.debug("tifffile: %s", record.getMessage())
    return False


class TiffFile:
    """Read the first series of a TIFF file by tifffile: one image, whose pages may be its channels.

    Attributes:
        shape: (H, W, C) of the stored image. size: (width, height) of the upright image. turn: EXIF orientation.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.source = source_name(source), source
        try:
            self._tifffile = import_extra("tifffile", "tiff")
        except UserError as error:
            raise UserError(f"{self.name}: a TIFF that Pillow cannot read. {error}") from error
        logging.getLogger("tifffile").addFilter(_log_for_debugging)  # once, as it is always the same function
        self._use(lambda series: self._describe(series))

    def _use(self, action: Any) -> Any:
        source = io.BytesIO(self.source) if isinstance(self.source, bytes) else os.fspath(self.source)
        try:
            with self._tifffile.TiffFile(source) as file:
                self._check_series(file.series)
                return action(file.series[0])
        except UserError:
            raise
        # tifffile and its decoders raise anything from ValueError to struct.error on damaged files.
        except Exception as error:
            needed = ' (pip install "d2_maskrcnn[tiff]")' if "imagecodecs" in str(error) else "; copy it again"
            needed = file_advice(self.source, needed)
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.name}: not a readable TIFF: {reason:.200}{needed}") from error

    def _check_series(self, all_series: Any) -> None:
        if not all_series:
            advice = file_advice(self.source, "; copy it again")
            raise UserError(f"{self.name}: a TIFF without any image{advice}")
        if len(all_series) > 1 and all_series[0].kind in _SEVERAL_IMAGES:
            shapes = " and ".join(str(tuple(each.shape)) for each in all_series[:2])
            raise UserError(
                f"{self.name}: a TIFF whose pages differ: {shapes}; expected one image: save each page as a file."
            )

    def _describe(self, series: Any) -> None:
        """Find the axes Y and X and, if there is one, that of the channels."""
        if np.dtype(series.dtype).kind not in "buif":
            raise UserError(
                f"{self.name}: values of the type {series.dtype}; expected integers or floating point: save the real "
                "part, the magnitude or the phase."
            )
        axes = str(series.axes)
        others = [index for index, axis in enumerate(axes) if axis not in "YX" and series.shape[index] != 1]
        if axes.count("Y") != 1 or axes.count("X") != 1 or len(others) > 1:
            raise UserError(
                f"{self.name}: a TIFF with the axes {axes} of the sizes {tuple(series.shape)}; expected one image of "
                "height, width and channels: save each image as a file of its own."
            )
        self._order = [axes.index("Y"), axes.index("X"), *others]
        height, width, *channels = (int(series.shape[index]) for index in self._order)
        self.shape = (height, width, *(channels or [1]))
        tag = series.pages[0].keyframe.tags.get(ExifTags.Base.Orientation)
        self.turn = int(tag.value) if tag is not None else 1
        self.size = (height, width) if self.turn in QUARTER_TURNS else (width, height)

    def page_offsets(self) -> list[int]:
        """Return where in the file the tags of the image's pages are."""
        return self._use(lambda series: [int(page.offset) for page in series.pages])

    def read(self, max_pixels: int | None = None) -> np.ndarray:
        """Return the upright image, (H, W, C)."""
        limit = MAX_PIXELS if max_pixels is None else max_pixels
        height, width, channels = self.shape
        if height * width > limit or height * width * channels > 3 * limit:
            raise UserError(
                f"{self.name}: {width}x{height} pixels of {channels} channels, more than the limit of "
                f"{limit / 1e6:.0f} megapixels of 3 channels; cut it into several images, or save it as a TIFF file of "
                "tiles and predict by tiles"
            )
        pixels = self._use(lambda series: series.asarray())
        if pixels.size != height * width * channels:
            raise UserError(
                f"{self.name}: a TIFF with {pixels.size} values; its tags say {height} x {width} x {channels}"
                f"{file_advice(self.source, '; copy it again')}"
            )
        rest = [axis for axis in range(pixels.ndim) if axis not in self._order]
        return turn_array(pixels.transpose([*self._order, *rest]).reshape(self.shape), self.turn)


def turn_array(image: np.ndarray, turn: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8) to an array (H, W, ...)."""
    turned = image.swapaxes(0, 1) if turn in QUARTER_TURNS else image
    if turn in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return turned[::-1] if turn in (3, 4, 7, 8) else turned
