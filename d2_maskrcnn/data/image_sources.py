"""Load images from paths, URLs, arrays, folders and glob patterns, a few of them ahead of their use."""

import glob
import io
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.data.image_reading import is_image_name, pillow_to_array, read_image
from d2_maskrcnn.data.large_images import read_for_tiles
from d2_maskrcnn.data.raw_images import check_raw, read_raw
from d2_maskrcnn.errors import UserError, one_line
from d2_maskrcnn.image_files import CONTENT, decoding
from d2_maskrcnn.weights.download import WEB_ERRORS, download_reason, open_address

logger = logging.getLogger(__name__)

URL_TIMEOUT = 30.0  # seconds without data
DOWNLOAD_SECONDS = 300.0  # of a whole download
MAX_DOWNLOAD = 256 * 2**20  # bytes of an image
READERS = 1  # thread: Pillow's warnings are switched off for the whole process while an image is opened


def load_image(source: Any, bgr: bool = False, for_tiles: bool = False, raw_channels: int = 0) -> Any:
    """Load one image.

    Args:
        source: a path, an ``http(s)://`` URL, a ``PIL.Image``, an (H, W, 3) or (H, W) uint8 array, or a (3, H, W)
            uint8 tensor.
        bgr: whether arrays and tensors are BGR, as from OpenCV, instead of RGB.
        for_tiles: whether large files and URLs may be decoded by windows; see
            :func:`~d2_maskrcnn.data.large_images.read_for_tiles`.
        raw_channels: if not 0, the image has this number of channels, which are not converted: arrays are (H, W, C),
            or (H, W) for one channel, of any type, tensors (C, H, W); ``bgr`` has no effect.

    Returns:
        (H, W, 3) uint8 RGB; (H, W, C) float32 with ``raw_channels``; or a
        :class:`~d2_maskrcnn.data.windowed_images.WindowedImage` of such windows.

    Raises:
        UserError: ``source`` is no image, or it cannot be read.
    """
    if isinstance(source, (str, Path)):
        return load_file(source, for_tiles=for_tiles, raw_channels=raw_channels)
    if not isinstance(source, (Image.Image, np.ndarray, torch.Tensor)):
        raise UserError(f"Expected an image, got {describe(source)}.")
    if 0 in (source.size if isinstance(source, Image.Image) else source.shape):
        raise UserError(f"Expected an image with pixels, got {describe(source)}.")
    if isinstance(source, Image.Image):
        with decoding(source_name(source) or "the image"):
            return check_raw(np.asarray(source), raw_channels, "The image") if raw_channels else pillow_to_array(source)
    pixels = _pixels(source, raw_channels > 0)
    if raw_channels:
        return check_raw(pixels, raw_channels, "The image")
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise UserError(f"Expected an (H, W, 3) or (H, W) uint8 image, got {describe(source)}.{_advice(pixels)}")
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    # A copy: the results show these pixels, also if the caller uses the memory for the next image.
    return np.array(pixels[:, :, ::-1] if bgr else pixels, order="C")


def _pixels(source: np.ndarray | torch.Tensor, raw: bool) -> np.ndarray:
    """Return an array or a tensor as an array of the same numbers, the channels last."""
    if not isinstance(source, torch.Tensor):
        return np.asarray(source)  # also of a subclass, such as np.matrix
    if source.layout != torch.strided or source.is_meta or source.is_quantized:
        raise UserError(f"Expected a dense tensor with values, got {describe(source)}.")
    values = source.detach().cpu()
    has_counterpart = not values.is_floating_point() or values.dtype in (torch.float16, torch.float32, torch.float64)
    pixels = (values if has_counterpart else values.float()).numpy()
    return pixels.transpose(1, 2, 0) if pixels.ndim == 3 and (raw or pixels.shape[0] == 3) else pixels


def _advice(pixels: np.ndarray) -> str:
    """Say how to convert an array that is not an 8-bit color image; "" if it cannot be known."""
    if pixels.ndim == 4 and pixels.dtype == np.uint8:
        return " Give the images of a batch as a list."
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8:
        return " Remove its alpha channel, or give PIL.Image.fromarray(image)."
    if pixels.ndim in (2, 3) and pixels.dtype.kind in "fbu":
        return " Scale its values to 0..255 and convert them, or write it to a PNG or TIFF file and give its path."
    return ""


def load_file(source: str | Path, channels: str = "RGB", for_tiles: bool = False, raw_channels: int = 0) -> Any:
    """Load an image from a path or an ``http(s)://`` URL; see :func:`load_image`.

    Args:
        channels: their order, "RGB" or "BGR"; without effect on an image with ``raw_channels``.

    Raises:
        UserError: it cannot be read; the message begins with the path or URL.
    """
    is_url = _is_url(source)
    content = download_image(str(source)) if is_url else Path(source).expanduser()
    try:
        if for_tiles:
            return read_for_tiles(content, raw_channels, channels, name=str(source))
        return read_raw(content, raw_channels) if raw_channels else read_image(content, channels)
    except UserError as error:
        if not is_url:
            raise
        raise UserError(str(error).replace(CONTENT, str(source), 1)) from error


def check_several(source: Any) -> None:
    """Check that an object lists images; a dict, text or an open file is iterated by keys, letters or lines instead.

    Raises:
        UserError: it does not.
    """
    if isinstance(source, io.IOBase) or hasattr(source, "read"):
        raise UserError(f"Expected an image, got an open file ({describe(source)}); give its path, or PIL.Image.open.")
    if not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray, memoryview, Mapping)):
        raise UserError(f"Expected an image, a path, a URL or a list of these, got {describe(source)}.")


def load_images(
    sources: Iterable[Any], bgr: bool = False, for_tiles: bool = False, ahead: int = 2, raw_channels: int = 0
) -> Iterator[tuple[Any, str]]:
    """Load images in order, in a thread, while the caller works on the ones before.

    A file or URL that cannot be read is reported in the log and skipped.

    Args:
        sources: see :func:`load_image`, as for ``bgr``, ``for_tiles`` and ``raw_channels``.
        ahead: number of images that are loaded before they are requested.

    Yields:
        The image as :func:`load_image` returns it, and the path or URL ("" for images from memory).

    Raises:
        UserError: an object in memory is not an image.
    """
    with ThreadPoolExecutor(READERS) as pool:
        queue: deque[tuple[Any, Future[Any]]] = deque()
        for source in sources:
            image = pool.submit(load_image, source, bgr, for_tiles, raw_channels)
            if isinstance(source, (np.ndarray, torch.Tensor)):
                wait([image])  # before an iterator uses the same memory for its next image
            queue.append((source, image))
            if len(queue) > ahead:
                yield from _finished(*queue.popleft())
        while queue:
            yield from _finished(*queue.popleft())


def _finished(source: Any, image: "Future[Any]") -> Iterator[tuple[Any, str]]:
    try:
        yield image.result(), source_name(source)
    except UserError as error:
        if not isinstance(source, (str, Path)):
            raise
        logger.error("%s", one_line(error))


def list_images(source: str | Path) -> list[Path] | None:
    """Return the image files of a folder or glob pattern; None if ``source`` names a single image.

    Raises:
        UserError: there are none.
    """
    if not str(source).strip():
        raise UserError("The name of the image is empty; expected a path, a URL, a folder or a glob pattern.")
    if _is_url(source):
        return None
    path = Path(source).expanduser()
    if os.path.isdir(path):
        paths = sorted(each for each in _list_folder(path) if is_image_name(each) and not os.path.isdir(each))
    elif not os.path.exists(path) and any(sign in str(source) for sign in "*?["):
        paths = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if is_image_name(each))
    else:
        return None
    if not paths:
        raise UserError(f"{source}: contains no images.")
    return paths


def _list_folder(path: Path) -> list[Path]:
    """Return the paths in a folder, without hidden ones."""
    try:
        return [each for each in path.iterdir() if not each.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path}: the folder cannot be read ({error.strerror}).") from error


def source_name(source: Any) -> str:
    """Return the path or URL of an image, "" if it has none."""
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "filename", "") or "")


def describe(value: Any) -> str:
    """Name the type of an object, with shape and element type of arrays and tensors, for messages."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return type(value).__name__


def _is_url(source: str | Path) -> bool:
    return str(source).lower().startswith(("http://", "https://"))


def download_image(url: str) -> bytes:
    """Download the file of an image.

    Raises:
        UserError: the download fails, takes longer than ``DOWNLOAD_SECONDS``, or is larger than ``MAX_DOWNLOAD`` bytes.
    """
    end = time.monotonic() + DOWNLOAD_SECONDS
    data = bytearray()
    try:
        with open_address(url, URL_TIMEOUT) as answer:
            while chunk := answer.read1(2**20):
                data += chunk
                if len(data) > MAX_DOWNLOAD:
                    raise UserError(f"{url}: more than {MAX_DOWNLOAD >> 20} MB; expected an image.")
                if time.monotonic() > end:
                    raise UserError(f"{url}: download failed (not complete after {DOWNLOAD_SECONDS:.0f} seconds).")
            missing = answer.length
    except UserError:
        raise
    except WEB_ERRORS as error:
        raise UserError(f"{url}: download failed ({download_reason(error)}).") from error
    if missing:
        raise UserError(f"{url}: download failed (the connection ended {missing} bytes before the end).")
    return bytes(data)
