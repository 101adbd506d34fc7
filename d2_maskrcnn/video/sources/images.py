"""Read images from files, folders and globs."""

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from d2_maskrcnn.data.image_reading import is_image_name
from d2_maskrcnn.data.image_sources import load_file
from d2_maskrcnn.data.raw_images import to_rgb
from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.errors import UserError, one_line
from d2_maskrcnn.image_files import FORMAT_NAMES
from d2_maskrcnn.video.frame import Frame

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}


def find_images(inputs: Sequence[str]) -> list[Path | str]:
    """List the image files that ``inputs`` name, without duplicates.

    Args:
        inputs: files and addresses of images, taken as they are; folders and glob patterns, expanded in alphabetical
            order.

    Raises:
        UserError: a path doesn't exist, or a folder or pattern contains no images.
    """
    paths: list[Path | str] = []
    for item in inputs:
        if is_image_url(item):
            paths.append(item)
            continue
        path = Path(item).expanduser()
        if path.is_dir():
            # Broken links are kept, to be reported; hidden files are skipped.
            inside = sorted(p for p in path.iterdir() if not p.is_dir() and p.name[0] != "." and is_image_name(p))
            if not inside:
                raise UserError(f"Input {item}: the folder contains no images ({FORMAT_NAMES}).")
            paths.extend(inside)
        elif path.exists():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise UserError(f"Input {item} is a video; give it as the video input.")
            paths.append(path)
        else:
            paths.extend(_expand(item))
    return list(dict.fromkeys(paths))


def is_video(item: str) -> bool:
    """Return whether an input is a video file or a stream, not an image, a folder or a glob pattern.

    >>> is_video("a.mp4"), is_video("rtsp://host/1"), is_video("https://host/a.jpg?size=1"), is_video("a.jpg")
    (True, True, False, False)
    """
    if "://" in item:
        return not is_image_url(item)
    return Path(item).suffix.lower() in VIDEO_SUFFIXES and not Path(item).is_dir()


def is_image_url(item: str) -> bool:
    """Return whether an input is the address of an image on a web server."""
    address = urlsplit(item)
    return address.scheme in ("http", "https") and is_image_name(Path(address.path))


def has_media_suffix(path: Path) -> bool:
    """Return whether the suffix belongs to any image or video format, so that a folder of this name is a mistake."""
    return path.suffix.lower() in Image.registered_extensions() or path.suffix.lower() in VIDEO_SUFFIXES


def image_ids(names: Sequence[str]) -> list[int]:
    """Return COCO image ids: the numbers in the names (``000000001000.jpg``) if all are unique, else 1, 2, 3, ..."""
    stems = [Path(name).stem for name in names]
    if all(stem.isdecimal() and stem.isascii() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(names) + 1))


class ImageSource:
    """Yield image files as frames. Unreadable ones are reported and skipped.

    Args:
        paths: the files and addresses.
        for_tiles: whether the images are predicted by tiles; see
            :func:`~d2_maskrcnn.data.large_images.read_for_tiles`.
        raw_channels: if not 0, the frames have the images' channels in ``raw``; see
            :func:`~d2_maskrcnn.data.raw_images.read_raw`.

    Attributes:
        broken: the messages about unreadable files, after the iteration.
    """

    def __init__(self, paths: Sequence[Path | str], for_tiles: bool = False, raw_channels: int = 0) -> None:
        self.paths = list(paths)
        self.for_tiles, self.raw_channels = for_tiles, raw_channels
        self.broken: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for path, image_id in zip(self.paths, image_ids([str(path) for path in self.paths]), strict=True):
            try:
                image = load_file(path, "BGR", self.for_tiles, self.raw_channels)
            except UserError as error:
                logger.error("%s", one_line(error))
                self.broken.append(str(error))
                continue
            if isinstance(image, WindowedImage):
                yield Frame(np.zeros((0, 0, 3), np.uint8), image_id, name=str(path), windowed=image)
            elif self.raw_channels:
                yield Frame(np.ascontiguousarray(to_rgb(image)[:, :, ::-1]), image_id, name=str(path), raw=image)
            else:
                yield Frame(image, image_id, name=str(path))


def _expand(pattern: str) -> list[Path]:
    matches = sorted(Path(p) for p in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    images = [p for p in matches if p.is_file() and is_image_name(p)]
    if images:
        return images
    if any(sign in pattern for sign in "*?["):
        others = f", only other files such as {matches[0]}" if matches else ""
        raise UserError(f"Input {pattern!r}: no image matches{others}.")
    raise UserError(f"Input {pattern}: no such file or folder.")
