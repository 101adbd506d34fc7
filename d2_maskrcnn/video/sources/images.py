"""Images from files, folders and globs, whatever their colour format and orientation."""

import glob
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.frame import Frame

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
)
# What Pillow knows by name but cannot read by itself: a folder's data files are no broken images.
_NOT_READ_ALONE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


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
                raise UserError(f"--input {item}: no images in this folder (known: {_known_suffixes()}).")
            found.extend(inside)
        elif path.exists():
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise UserError(f"--input {item} is a video: use --video-input {item}.")
            found.append(path)
        else:
            found.extend(_expand(item))
    return list(dict.fromkeys(found))


def is_image_name(path: Path) -> bool:
    """Whether Pillow knows the file's suffix as that of an image."""
    known = Image.registered_extensions().get(path.suffix.lower())
    return known in Image.OPEN and known not in _NOT_READ_ALONE and path.suffix.lower() not in VIDEO_SUFFIXES


def is_file_type(path: Path) -> bool:
    """Whether a name ends as those of some kind of image or video do, so that a folder of that name is a mistake."""
    return path.suffix.lower() in Image.registered_extensions() or path.suffix.lower() in VIDEO_SUFFIXES


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR, upright as the EXIF data say; the first frame of animations.

    Transparent parts are shown on white. Of 16-bit images the upper 8 bits are taken; floating-point ones go from 0
    to 1, or to 255 if there is anything above 1.

    Raises:
        UserError: the file is missing, unreadable, broken, too large or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large, or with odd metadata: it is read all the same
            return _read(path)
    except FileNotFoundError as error:
        raise UserError(f"Image {path}: there is no such file.") from error
    except PermissionError as error:
        raise UserError(f"Image {path} may not be read: change its permissions.") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise UserError(f"Image {path} has more than {most:.0f} megapixels: scale it down.") from error
    except _BROKEN as error:
        raise UserError(f"Image {path} cannot be read ({error}): broken, cut short, or no image.") from error


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
                image = read_image(path)
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


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        upright = _upright(image)
        return np.ascontiguousarray(np.asarray(_to_rgb(upright))[:, :, ::-1])


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:  # broken EXIF data do not make the image unreadable
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64) * _scale(image)
        return Image.fromarray(np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _scale(image: Image.Image) -> float:
    """From the numbers of a greyscale image of more than 8 bits to 0 to 255; Pillow's conversion would clip them."""
    highest = float(np.asarray(image).max(initial=0))
    if image.mode == "F":
        return 255 if highest <= 1 else 1
    # Some versions of Pillow open 16-bit PNG as "I", whose numbers may be anything elsewhere.
    return 1 / 257 if image.mode.startswith("I;16") or image.format == "PNG" or highest > 255 else 1


def _known_suffixes() -> str:
    return "jpg, png, webp, tif, bmp and what else Pillow reads"
