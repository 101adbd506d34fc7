"""Read images that are predicted by tiles: large ones by windows, if their format allows it."""

from typing import BinaryIO

import numpy as np

from d2_maskrcnn.data.image_reading import image_size, read_image
from d2_maskrcnn.data.raw_images import is_unknown_tiff, read_raw, stored_orientation
from d2_maskrcnn.data.tiff_files import TiffFile
from d2_maskrcnn.data.tiff_layout import ORIENTATION, TiffPage, read_page
from d2_maskrcnn.data.windowed_images import WindowedImage, open_source, renamed
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import MAX_TILED_PIXELS, QUARTER_TURNS, Source, open_image, orientation, source_name

MIN_PIXELS = 2**24  # of images that are decoded by windows: smaller ones are decoded once, as a whole
MAX_PIXELS = 2**32 - 1  # COCO's run lengths are 32-bit numbers
MAX_SEGMENT = 2**25  # pixels of a strip or tile; an image of larger ones is decoded as a whole


def read_for_tiles(
    source: Source, raw_channels: int = 0, order: str = "RGB", name: str = ""
) -> np.ndarray | WindowedImage:
    """Read an image that is predicted by tiles: by windows if it is large and its format allows it, or as a whole.

    Args:
        source: path of a file, or the content of one.
        raw_channels: number of channels that are not converted; 0 for 8-bit color.
        order: of colors, "RGB" or "BGR".
        name: of the image, in messages about windows; default: the path.

    Returns:
        (H, W, 3) uint8, or (H, W, raw_channels) float32, or an image of such windows.

    Raises:
        UserError: as in :func:`~d2_maskrcnn.data.image_reading.read_image`.
    """
    image = open_windowed(source, raw_channels, order)
    if image is not None:
        image.name = name or image.name
        return image
    if raw_channels:
        return read_raw(source, raw_channels, MAX_TILED_PIXELS)
    return read_image(source, order, MAX_TILED_PIXELS)


def open_windowed(
    source: Source, raw_channels: int = 0, order: str = "RGB", min_pixels: int | None = None
) -> WindowedImage | None:
    """Open an image to decode windows of it; see :func:`read_for_tiles`.

    Args:
        min_pixels: of the image; default: ``MIN_PIXELS``.

    Returns:
        The image; None if it is smaller, or its format does not allow it.

    Raises:
        UserError: the image has too many pixels, or its first pixels cannot be decoded.
    """
    with open_source(source) as file:
        page = read_page(file)
        if page is None or page.height * page.width < (MIN_PIXELS if min_pixels is None else min_pixels):
            return None
        if page.segment[0] * page.segment[1] > MAX_SEGMENT or not page.is_complete(file):
            return None
        if page.height * page.width > MAX_PIXELS:
            raise UserError(
                f"{source_name(source)}: {page.width}x{page.height} pixels, more than the limit of {MAX_PIXELS} that "
                "run-length encoding of masks has; cut it into several images"
            )
        first = page.parts(file, slice(0, 1), slice(0, 1), oriented=True)[0][0]
        if raw_channels:
            return _open_raw(source, file, page, first, raw_channels)
        try:
            with open_image(first) as image:
                return WindowedImage(source, [page], orientation(image) or 1, order=order)
        except UserError as error:
            if not is_unknown_tiff(first, error):
                raise renamed(source_name(source), error) from error
    return None


def size_for_tiles(source: Source) -> tuple[int, int]:
    """Return (width, height) in pixels of the upright image, from the header of a file that is predicted by tiles.

    Raises:
        UserError: as in :func:`~d2_maskrcnn.data.image_reading.image_size`, with the limits of :func:`read_for_tiles`.
    """
    with open_source(source) as file:
        page = read_page(file)
    if page is None or not MIN_PIXELS <= page.height * page.width <= MAX_PIXELS:
        return image_size(source, MAX_TILED_PIXELS)
    turned = page.number(ORIENTATION, 1) in QUARTER_TURNS
    return (page.height, page.width) if turned else (page.width, page.height)


def _open_raw(source: Source, file: BinaryIO, page: TiffPage, first: bytes, channels: int) -> WindowedImage | None:
    """Open an image whose channels are not converted, by what decodes the whole file: Pillow or tifffile.

    Args:
        page: the first page.
        first: a TIFF file of its first segment.
    """
    turn = None if page.next_page else stored_orientation(first)
    if turn is not None:
        return WindowedImage(source, [page], turn, channels)
    tiff = TiffFile(source)
    pages = [read_page(file, offset) for offset in tiff.page_offsets()]
    same = [each for each in pages if each is not None and each.same_grid(page)]
    if len(same) < len(pages) or tiff.shape != (page.height, page.width, sum(each.samples for each in same)):
        return None
    return WindowedImage(source, same, tiff.turn, channels, by_tifffile=True)
