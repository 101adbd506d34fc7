"""Pictures from files, folders and globs, whatever their colour format and orientation."""

import glob
import logging
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from d2_maskrcnn.demo.frame import Frame
from d2_maskrcnn.errors import UserError

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"}
# What Pillow's decoders raise on broken files.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """The picture files that ``inputs`` name: files as they are, folders and globs in alphabetical order.

    Raises:
        UserError: something is not there, or a folder or glob has no pictures.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and is_picture_name(p))
            if not inside:
                raise UserError(f"--input {item}: no pictures in this folder (known: {_known_suffixes()}).")
            found.extend(inside)
        elif path.exists():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise UserError(f"--input {item} is a video: use --video-input {item}.")
            found.append(path)
        else:
            found.extend(_expand(item))
    return list(dict.fromkeys(found))


def is_picture_name(path: Path) -> bool:
    """Whether Pillow knows the file's suffix as that of a picture."""
    return (
        Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN
        and path.suffix.lower() not in VIDEO_SUFFIXES
    )


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR, upright as the EXIF data say; the first frame of animations.

    Transparent parts are shown on white; of 16-bit pictures the upper 8 bits are taken.

    Raises:
        UserError: the file is missing, unreadable, broken or no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = _upright(image)
            return np.ascontiguousarray(np.asarray(_to_rgb(upright))[:, :, ::-1])
    except FileNotFoundError as error:
        raise UserError(f"Picture {path}: there is no such file.") from error
    except PermissionError as error:
        raise UserError(f"Picture {path} may not be read: change its permissions.") from error
    except _BROKEN as error:
        raise UserError(f"Picture {path} cannot be read ({error}): broken, cut short, or no picture.") from error


class PictureSource:
    """Frames from picture files. A broken one is reported and left out; :attr:`broken` has the messages.

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
                picture = read_picture(path)
            except UserError as error:
                logger.error("%s", error)
                self.broken.append(str(error))
                continue
            yield Frame(picture, index, name=str(path))


def _expand(pattern: str) -> list[Path]:
    matches = sorted(Path(p) for p in glob.glob(str(Path(pattern).expanduser()), recursive=True))
    pictures = [p for p in matches if p.is_file() and is_picture_name(p)]
    if pictures:
        return pictures
    if any(sign in pattern for sign in "*?["):
        raise UserError(f"--input {pattern!r}: no picture matches ({len(matches)} other files do).")
    raise UserError(f"--input {pattern}: there is no such file or folder.")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:  # broken EXIF data do not make the picture unreadable
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        # Pillow opens 16-bit greyscale as "I" in some versions, and its own conversion would clip at 255.
        scale = 1 / 257 if values.max(initial=0) > 255 else 1
        return Image.fromarray(np.clip(np.floor(values * scale + 0.5), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _known_suffixes() -> str:
    return "jpg, png, webp, tif, bmp and what else Pillow reads"
