"""Whether the images that a COCO JSON file lists are there, can be read and have the size that it gives them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from d2_maskrcnn.data.coco.boxes import CocoTable
from d2_maskrcnn.data.coco.report import Problem, problem
from d2_maskrcnn.errors import UserError

LOOKED_AT = 300  # images whose header is read, spread over the file
_EXIF_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)

# What Pillow raises for files that are no images, or broken ones; SyntaxError comes from its PNG reader.
IMAGE_ERRORS = (OSError, SyntaxError, Image.DecompressionBombError)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels of an image as it is shown (turned as its EXIF data asks for), from its header.

    Raises:
        OSError, SyntaxError, PIL.Image.DecompressionBombError: it cannot be read.
    """
    with Image.open(path) as image:
        width, height = image.size
        # Pillow decodes a whole PNG to look for EXIF data behind its pixels, where hardly any has them
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        turned = exif.get(_EXIF_ORIENTATION) in _QUARTER_TURNS
    return (height, width) if turned else (width, height)


def check_images(table: CocoTable, image_root: str | os.PathLike[str]) -> Iterator[Problem]:
    """Yields missing images and, of ``LOOKED_AT`` of them, those that are broken or of another size.

    Args:
        table: the JSON file's columns.
        image_root: the folder that ``file_name`` starts from.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(image_root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; expected the {len(table.images)} images of the dataset there "
            "(datasets/README.md shows where data goes)"
        )
    names = [image["file_name"] for image in table.images]
    missing = _missing(root, names)
    yield from problem(
        missing,
        f"of {len(names)} images missing from {root}",
        lambda index: names[index],
        "copy them there or name their folder (D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES)",
    )
    if len(missing) == 0 and names:
        yield from _check_headers(table, root, names)


def _missing(root: Path, names: list[str]) -> np.ndarray:
    """Indices of the images that are not there; every folder is listed once, which is much faster than asking."""
    listed: dict[str, set[str]] = {}
    found = np.zeros(len(names), dtype=bool)
    for index, name in enumerate(names):
        folder, base = os.path.split(os.path.join(root, name))
        if folder not in listed:
            listed[folder] = _files_in(folder)
        found[index] = base in listed[folder]
    return np.flatnonzero(~found)


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_headers(table: CocoTable, root: Path, names: list[str]) -> Iterator[Problem]:
    broken: dict[int, str] = {}
    wrong: dict[int, str] = {}
    for index in np.unique(np.linspace(0, len(names) - 1, LOOKED_AT).astype(int)):
        expected = tuple(int(value) for value in table.sizes[index])
        try:
            actual = image_size(root / names[index])
        except IMAGE_ERRORS as error:
            broken[int(index)] = f"{names[index]}: {type(error).__name__}"
            continue
        if actual != expected:
            wrong[int(index)] = size_mismatch(names[index], actual, expected)
    yield from problem(
        sorted(broken), f"images in {root} broken", broken.__getitem__, "copy them again or take them out of the JSON"
    )
    yield from problem(
        sorted(wrong),
        "images whose size differs from the JSON's",
        wrong.__getitem__,
        "expected 'width' and 'height' of the image as shown: resize it back, or annotate this one",
    )


def size_mismatch(name: str, actual: tuple[int, int], expected: tuple[int, ...]) -> str:
    """One image's sizes (width, height) for a message."""
    text = f"{name} is {actual[0]}x{actual[1]}, the JSON says {expected[0]}x{expected[1]}"
    return text + (" (turned by its EXIF orientation?)" if actual == tuple(reversed(expected)) else "")
