"""Check that the images that a COCO JSON lists exist, can be read and have the size that the file gives."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from d2_maskrcnn.data.flaws.coco_table import CocoTable
from d2_maskrcnn.data.flaws.flaw import Flaw
from d2_maskrcnn.data.formats.image_references import is_inside
from d2_maskrcnn.data.image_reading import (
    ImageSummary,
    check_layout,
    image_size,
    read_image,
    size_mismatch,
    summarize_image,
)
from d2_maskrcnn.data.large_images import MAX_PIXELS as MAX_WINDOWED_PIXELS
from d2_maskrcnn.data.large_images import size_for_tiles
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import MAX_PIXELS

SAMPLED = 300  # images whose header is read where not all are decoded, evenly spaced over the file
THREADS = 8  # that decode images


@dataclass
class ImageFiles:
    """The image files of a table, as far as they were read.

    Attributes:
        paths: of the images that exist, by index.
        digests: of the content of each decoded file, by index.
        thumbnails: of decoded images, by index: (S, S) uint8 grayscale.
        sizes: (width, height) in pixels of each upright image that was read, by index.
    """

    paths: dict[int, Path] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    thumbnails: dict[int, np.ndarray] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)


def check_images(
    table: CocoTable,
    image_root: str | os.PathLike[str],
    files: ImageFiles,
    decode: bool = False,
    channels: int = 0,
    for_tiles: bool = False,
) -> Iterator[Flaw]:
    """Yield names outside of the folder, missing and unreadable images, and other sizes than in the JSON.

    Args:
        table: the columns of the JSON.
        image_root: folder that ``file_name`` is relative to.
        files: gets the paths and, of files that are read, digests, thumbnails and sizes; in place.
        decode: whether every image is decoded; otherwise the headers of ``SAMPLED`` images are read.
        channels: of images that the model reads with their values unchanged; 0 for 8-bit color images.
        for_tiles: whether the images are predicted by tiles, and may be larger; without effect on ``decode``.
    """
    root = Path(image_root)
    if not root.is_dir():
        remedy = f"expected the {len(table.images)} images there (datasets/README.md describes the layout)"
        yield Flaw("image-folder-missing", "error", 1, "image folder missing", (f"{root}: no such folder",), remedy)
        return
    names = [image["file_name"] for image in table.images]
    limit = MAX_WINDOWED_PIXELS if for_tiles else MAX_PIXELS
    too_large = table.sizes.prod(axis=1) > limit
    outside = np.array([not is_inside(root, name) for name in names], dtype=bool)
    yield from _check_names_and_sizes(table, root, too_large, limit, outside)
    missing = _missing(root, names) & ~outside
    absent = np.flatnonzero(missing).tolist()
    yield from table.image_flaw(
        "image-missing",
        missing,
        f"of {len(names)} images missing from {root}",
        _remedy(root, [names[index] for index in absent[:SAMPLED]]),
    )
    present = np.flatnonzero(~missing & ~outside & ~too_large)
    files.paths.update({index: root / names[index] for index in present.tolist()})
    if decode:
        yield from _check_contents(table, root, files, channels)
    elif len(present):
        sample = present[np.unique(np.linspace(0, len(present) - 1, SAMPLED).astype(int))]
        yield from _check_headers(table, root, files, sample.tolist(), size_for_tiles if for_tiles else image_size)


def _check_names_and_sizes(
    table: CocoTable, root: Path, too_large: np.ndarray, limit: int, outside: np.ndarray
) -> Iterator[Flaw]:
    yield from table.image_flaw(
        "image-too-large",
        too_large,
        f"images of more pixels than the limit of {limit / 1e6:.0f} megapixels",
        "scale them down or tile them",
        lambda index: f"{table.images[index]['file_name']}: {table.sizes[index, 0]}x{table.sizes[index, 1]}",
    )
    yield from table.image_flaw(
        "image-outside-folder",
        outside,
        f"images outside of {root}",
        "expected paths inside of the image folder: move the images there, or name the folder that contains them all "
        "(D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES)",
    )


def _remedy(root: Path, missing: list[str]) -> str:
    """Return what to do about missing images: correct their names if the files exist under similar ones."""
    for name in missing:
        for other, reason in similar_names(name):
            if is_inside(root, other) and (root / other).is_file():
                return f"{root / other} exists, but the name in the JSON {reason}: write 'file_name' as {other!r}"
    return "copy them there or name their folder (D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES)"


def similar_names(name: str) -> list[tuple[str, str]]:
    """Return names that other programs write differently, each with the difference."""
    pairs = ((name.replace("\\", "/"), "has backslashes"), (unquote(name), "is URL-encoded"))
    return [(other, reason) for other, reason in pairs if other != name]


def _missing(root: Path, names: list[str]) -> np.ndarray:
    """Return which images are missing, (I,) bool, listing each folder once instead of asking for each file."""
    listings: dict[str, set[str]] = {}
    exists = np.zeros(len(names), dtype=bool)
    for index, name in enumerate(names):
        folder, base = os.path.split(os.path.join(root, name))
        if folder not in listings:
            listings[folder] = _files_in(folder)
        exists[index] = base in listings[folder]
    return ~exists


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _check_headers(
    table: CocoTable, root: Path, files: ImageFiles, sample: list[int], size_of: Callable[[Path], tuple[int, int]]
) -> Iterator[Flaw]:
    unreadable: dict[int, str] = {}
    for index in sample:
        path, expected = files.paths[index], tuple(table.sizes[index].tolist())
        try:
            actual = size_of(path)
            if actual == expected[::-1] != expected and path.suffix.lower() == ".png":
                height, width, _ = read_image(path).shape  # its orientation may be stored behind the pixels
                actual = (width, height)
        except UserError as error:
            unreadable[index] = _without_folder(table, index, files.paths[index], error)
            continue
        files.sizes[index] = actual
    yield from _unreadable(table, root, unreadable)
    yield from _check_sizes(table, files)


def _without_folder(table: CocoTable, index: int, path: Path, error: UserError) -> str:
    return str(table.images[index]["file_name"]) + str(error).removeprefix(str(path))


def _unreadable(table: CocoTable, root: Path, unreadable: dict[int, str]) -> Iterator[Flaw]:
    yield from table.image_flaw(
        "image-unreadable",
        sorted(unreadable),
        f"images in {root} not readable",
        "copy them again, convert them or remove them from the JSON",
        unreadable.__getitem__,
    )


def _check_sizes(table: CocoTable, files: ImageFiles, rotated: dict[int, str] | None = None) -> Iterator[Flaw]:
    names, sizes = [image["file_name"] for image in table.images], table.sizes.tolist()
    wrong = {
        index: size_mismatch(names[index], actual, tuple(sizes[index]))
        for index, actual in files.sizes.items()
        if actual != tuple(sizes[index]) and index not in (rotated or {})
    }
    yield from table.image_flaw(
        "image-size",
        sorted(wrong),
        "images with another size than in the JSON",
        "expected 'width' and 'height' of the upright image: restore the original images, or annotate these",
        wrong.__getitem__,
    )


def _check_contents(table: CocoTable, root: Path, files: ImageFiles, channels: int) -> Iterator[Flaw]:
    """Decode every image; yield unreadable, truncated, rotated and repeated ones, and those of another size."""
    unreadable: dict[int, str] = {}
    truncated: dict[int, str] = {}
    rotated: dict[int, str] = {}
    upright: list[int] = []
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(_examine, channels=channels), files.paths.values())
        for index, result in zip(files.paths, results, strict=True):
            if isinstance(result, tuple):
                summary, files.digests[index] = result
                files.sizes[index], files.thumbnails[index] = summary.size, summary.thumbnail
                if summary.size != summary.stored_size:
                    upright.append(index)
                    if tuple(table.sizes[index].tolist()) == summary.stored_size:
                        rotated[index] = size_mismatch(
                            table.images[index]["file_name"], summary.size, summary.stored_size
                        )
            else:
                bad = truncated if result.header_is_good else unreadable
                bad[index] = _without_folder(table, index, files.paths[index], result.error)
    yield from _unreadable(table, root, unreadable)
    yield from table.image_flaw(
        "image-truncated",
        sorted(truncated),
        "images whose pixels end too early or are corrupt",
        "copy them again or remove them from the JSON",
        truncated.__getitem__,
    )
    yield from _check_sizes(table, files, rotated)
    yield from _check_orientation(table, rotated, [index for index in upright if index not in rotated])
    yield from _check_copies(table, files)


def _check_orientation(table: CocoTable, rotated: dict[int, str], upright: list[int]) -> Iterator[Flaw]:
    yield from table.image_flaw(
        "image-rotated",
        sorted(rotated),
        "images that their EXIF orientation rotates, annotated as if it did not",
        "they are read upright: annotate the upright images, or remove the EXIF orientation from the files",
        rotated.__getitem__,
    )
    yield from table.image_flaw(
        "image-exif",
        upright,
        "images that their EXIF orientation rotates",
        "nothing to do: they are read upright, as the JSON expects; other programs may not do so",
        severity="note",
    )


def _check_copies(table: CocoTable, files: ImageFiles) -> Iterator[Flaw]:
    first: dict[bytes, int] = {}
    copies = {
        index: other for index, digest in files.digests.items() if (other := first.setdefault(digest, index)) != index
    }
    copies = {i: j for i, j in copies.items() if files.paths[i] != files.paths[j]}  # reported as image-repeated
    yield from table.image_flaw(
        "image-duplicate",
        list(copies),
        "images with the same content as another image",
        "delete the copies, or merge their annotations",
        lambda index: f"{table.images[index]['file_name']} and {table.images[copies[index]]['file_name']}",
        severity="warning",
    )


@dataclass(frozen=True)
class _Failure:
    error: UserError
    header_is_good: bool


def _examine(path: Path, channels: int) -> tuple[ImageSummary, bytes] | _Failure:
    header_is_good = False
    try:
        image_size(path)
        header_is_good = True
        summary = summarize_image(path)
        header_is_good = False  # it is not damaged, but the model may take another layout
        check_layout(path, channels)
        return summary, hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except UserError as error:
        return _Failure(error, header_is_good)
