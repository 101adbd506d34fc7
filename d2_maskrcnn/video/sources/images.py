"""Images from files, folders and globs, whatever their colour format and orientation."""

import glob
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from d2_maskrcnn.data.image_reading import FORMAT_NAMES, is_image_name, read_image
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.frame import Frame

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The image files that ``inputs`` name: files as they are, folders and globs in alphabetical order.

    Raises:
        UserError: something is not there, or a folder or glob has no images.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            # Links that lead nowhere are kept, to be reported; hidden files are not meant for people.
            inside = sorted(p for p in path.iterdir() if not p.is_dir() and p.name[0] != "." and is_image_name(p))
            if not inside:
                raise UserError(f"--input {item}: no images in this folder (known: {FORMAT_NAMES}).")
            found.extend(inside)
        elif path.exists():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise UserError(f"--input {item} is a video: use --video-input {item}.")
            found.append(path)
        else:
            found.extend(_expand(item))
    return list(dict.fromkeys(found))


def is_file_type(path: Path) -> bool:
    """Whether a name ends as those of some kind of image or video do, so that a folder of that name is a mistake."""
    return path.suffix.lower() in Image.registered_extensions() or path.suffix.lower() in VIDEO_SUFFIXES


class ImageSource:
    """Frames from image files. A broken one is reported and left out; :attr:`broken` has the messages.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.broken: list[str] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            try:
                image = read_image(path, "BGR")
            except UserError as error:
                logger.error("%s", error)
                self.broken.append(str(error))
                continue
            yield Frame(image, index, name=str(path))


def _expand(pattern: str) -> list[Path]:
    matches = sorted(Path(p) for p in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    images = [p for p in matches if p.is_file() and is_image_name(p)]
    if images:
        return images
    if any(sign in pattern for sign in "*?["):
        raise UserError(f"--input {pattern!r}: no image matches ({len(matches)} other files do).")
    raise UserError(f"--input {pattern}: there is no such file or folder.")
