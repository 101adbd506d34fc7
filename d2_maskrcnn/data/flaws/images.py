"""Check that the images that a COCO JSON file lists exist, can be read and have the size that the file gives."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from d2_maskrcnn.data.flaws.boxes import CocoTable
from d2_maskrcnn.data.flaws.flaw import Problem, problem
from d2_maskrcnn.data.image_reading import MAX_PIXELS, image_size, read_image, size_mismatch
from d2_maskrcnn.errors import UserError

SAMPLED = 300  # images whose header is read, evenly spaced over the file


def check_images(table: CocoTable, image_root: str | os.PathLike[str]) -> Iterator[Problem]:
    """Yield names outside of the folder, missing images and, among ``SAMPLED``, corrupt ones and other sizes.

    Args:
        table: the columns of the JSON file.
        image_root: folder that ``file_name`` is relative to.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(image_root)
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; expected the {len(table.images)} images of the dataset there "
            "(datasets/README.md describes the layout)"
        )
    names = [image["file_name"] for image in table.images]
    refused = [*_check_names_and_sizes(table, root, names)]
    yield from refused
    if refused:
        return
    missing = _missing(root, names)
    yield from problem(
        missing,
        f"of {len(names)} images missing from {root}",
        lambda index: names[index],
        _remedy(root, [names[index] for index in missing[:SAMPLED]]),
    )
    if len(missing) == 0 and names:
        yield from _check_headers(table, root, names)


def _check_names_and_sizes(table: CocoTable, root: Path, names: list[str]) -> Iterator[Problem]:
    too_large = np.flatnonzero(table.sizes.prod(axis=1) > MAX_PIXELS)
    yield from problem(
        too_large,
        f"images of more pixels than the limit of {MAX_PIXELS / 1e6:.0f} megapixels",
        lambda index: f"{names[index]}: {table.sizes[index, 0]}x{table.sizes[index, 1]}",
        "scale them down or tile them",
    )
    outside = [index for index, name in enumerate(names) if not is_inside(root, name)]
    yield from problem(
        outside,
        f"images outside of {root}",
        lambda index: names[index],
        "expected paths inside of the image folder: move the images there, or name the folder that contains them all "
        "(D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES)",
    )


def _remedy(root: Path, missing: list[str]) -> str:
    """Return what to do about missing images: correct their names if the files exist under similar ones."""
    for name in missing:
        for other, reason in ((name.replace("\\", "/"), "has backslashes"), (unquote(name), "is URL-encoded")):
            if other != name and is_inside(root, other) and (root / other).is_file():
                return f"{root / other} exists, but the name in the JSON {reason}: write 'file_name' as {other!r}"
    return "copy them there or name their folder (D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES)"


def is_inside(root: str | os.PathLike[str], name: str) -> bool:
    """Return whether ``name``, relative to ``root`` or absolute, stays inside of it; links are not followed."""
    folder = os.path.abspath(root)
    path = os.path.abspath(os.path.join(folder, name))
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def candidate_folders(json_file: Path) -> list[Path]:
    """Return where the images of a COCO JSON file can be, the most likely folder first.

    These are the JSON's folder, ``images`` and the split's folder in it (``instances_train.json`` -> ``train``), then
    the same in its parent.
    """
    here, above = json_file.parent, json_file.parent.parent
    split = json_file.stem.removeprefix("instances_")
    return [here, here / "images", here / split, above, above / split, above / "images", above / "images" / split]


def _missing(root: Path, names: list[str]) -> np.ndarray:
    """Return the indices of missing images, listing each folder once instead of asking for each file."""
    listings: dict[str, set[str]] = {}
    exists = np.zeros(len(names), dtype=bool)
    for index, name in enumerate(names):
        folder, base = os.path.split(os.path.join(root, name))
        if folder not in listings:
            listings[folder] = _files_in(folder)
        exists[index] = base in listings[folder]
    return np.flatnonzero(~exists)


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_headers(table: CocoTable, root: Path, names: list[str]) -> Iterator[Problem]:
    unreadable: dict[int, str] = {}
    wrong: dict[int, str] = {}
    for index in np.unique(np.linspace(0, len(names) - 1, SAMPLED).astype(int)).tolist():
        path, expected = root / names[index], tuple(table.sizes[index].tolist())
        try:
            actual = image_size(path)
            if actual == expected[::-1] != expected and path.suffix.lower() == ".png":
                height, width, _ = read_image(path).shape  # its orientation may be stored behind the pixels
                actual = (width, height)
        except UserError as error:
            unreadable[index] = names[index] + str(error).removeprefix(str(path))
            continue
        if actual != expected:
            wrong[index] = size_mismatch(names[index], actual, expected)
    yield from problem(
        sorted(unreadable),
        f"images in {root} not readable",
        unreadable.__getitem__,
        "copy them again or remove them from the JSON",
    )
    yield from problem(
        sorted(wrong),
        "images with another size than in the JSON",
        wrong.__getitem__,
        "expected 'width' and 'height' of the upright image: restore the original images, or annotate these",
    )
