"""Load images from paths, URLs, arrays, folders and glob patterns, a few of them ahead of their use."""

import glob
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image

from d2_maskrcnn.data.image_reading import is_image_name, pillow_to_array, read_image
from d2_maskrcnn.data.raw_images import check_raw, read_raw
from d2_maskrcnn.errors import UserError, one_line

logger = logging.getLogger(__name__)

URL_TIMEOUT = 30.0  # seconds
MAX_DOWNLOAD = 256 * 2**20  # bytes of an image
READERS = 1  # thread: Pillow's warnings are switched off for the whole process while an image is opened


def load_image(source: Any, bgr: bool = False, max_pixels: int | None = None, raw_channels: int = 0) -> np.ndarray:
    """Load one image.

    Args:
        source: a path, an ``http(s)://`` URL, a ``PIL.Image``, an (H, W, 3) or (H, W) uint8 array, or a (3, H, W)
            uint8 tensor.
        bgr: whether arrays and tensors are BGR, as from OpenCV, instead of RGB.
        max_pixels: limit of files and URLs; see :func:`~d2_maskrcnn.data.image_reading.read_image`.
        raw_channels: if not 0, the image has this number of channels, which are not converted: arrays are (H, W, C),
            or (H, W) for one channel, of any type, tensors (C, H, W); ``bgr`` has no effect.

    Returns:
        (H, W, 3) uint8 RGB; (H, W, C) float32 with ``raw_channels``.

    Raises:
        UserError: ``source`` is no image, or it cannot be read.
    """
    if isinstance(source, (str, Path)):
        content = download_image(str(source)) if _is_url(source) else Path(source).expanduser()
        return (
            read_raw(content, raw_channels, max_pixels) if raw_channels else read_image(content, max_pixels=max_pixels)
        )
    if raw_channels:
        return _raw_from_memory(source, raw_channels)
    if isinstance(source, Image.Image):
        return pillow_to_array(source)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
        source = source.transpose(1, 2, 0) if source.ndim == 3 and source.shape[0] == 3 else source
    if not isinstance(source, np.ndarray):
        raise UserError(f"Expected an image, got {describe(source)}.")
    if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] == 3)):
        raise UserError(f"Expected an (H, W, 3) or (H, W) uint8 image, got {describe(source)}.")
    if 0 in source.shape:
        raise UserError(f"Expected an image with pixels, got {describe(source)}.")
    if source.ndim == 2:
        return np.repeat(source[:, :, None], 3, axis=2)
    return np.ascontiguousarray(source[:, :, ::-1] if bgr else source)


def _raw_from_memory(source: Any, channels: int) -> np.ndarray:
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
        source = source.transpose(1, 2, 0) if source.ndim == 3 else source
    if not isinstance(source, (np.ndarray, Image.Image)):
        raise UserError(f"Expected an image, got {describe(source)}.")
    return check_raw(np.asarray(source), channels, "The image")


def load_images(
    sources: Iterable[Any], bgr: bool = False, max_pixels: int | None = None, ahead: int = 2, raw_channels: int = 0
) -> Iterator[tuple[np.ndarray, str]]:
    """Load images in order, in a thread, while the caller works on the ones before.

    A file or URL that cannot be read is reported in the log and skipped.

    Args:
        sources: see :func:`load_image`, as for ``bgr``, ``max_pixels`` and ``raw_channels``.
        ahead: number of images that are loaded before they are requested.

    Yields:
        The image as :func:`load_image` returns it, and the path or URL ("" for images from memory).

    Raises:
        UserError: an object in memory is not an image.
    """
    with ThreadPoolExecutor(READERS) as pool:
        queue: deque[tuple[Any, Future[np.ndarray]]] = deque()
        for source in sources:
            queue.append((source, pool.submit(load_image, source, bgr, max_pixels, raw_channels)))
            if len(queue) > ahead:
                yield from _finished(*queue.popleft())
        while queue:
            yield from _finished(*queue.popleft())


def _finished(source: Any, image: "Future[np.ndarray]") -> Iterator[tuple[np.ndarray, str]]:
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
    if path.is_dir():
        paths = sorted(each for each in path.iterdir() if is_image_name(each) and not each.name.startswith("."))
    elif not path.exists() and any(sign in str(source) for sign in "*?["):
        paths = sorted(Path(each) for each in glob.glob(str(path), recursive=True) if is_image_name(each))
    else:
        return None
    if not paths:
        raise UserError(f"{source}: contains no images.")
    return paths


def source_name(source: Any) -> str:
    """Return the path or URL of an image, "" if it has none."""
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "filename", "") or "")


def describe(value: Any) -> str:
    """Name the type of an object, with shape and element type of arrays and tensors, for messages."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    return type(value).__name__


def _is_url(source: str | Path) -> bool:
    return str(source).startswith(("http://", "https://"))


def download_image(url: str) -> bytes:
    """Download the file of an image.

    Raises:
        UserError: the download fails, or is larger than ``MAX_DOWNLOAD`` bytes.
    """
    try:
        with urlopen(url, timeout=URL_TIMEOUT) as answer:
            data: bytes = answer.read(MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{url}: download failed ({error}).") from error
    if len(data) > MAX_DOWNLOAD:
        raise UserError(f"{url}: more than {MAX_DOWNLOAD >> 20} MB; expected an image.")
    return data
