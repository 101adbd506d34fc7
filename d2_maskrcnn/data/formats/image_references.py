"""Find the image files that annotations name, and read their sizes."""

import base64
import binascii
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from d2_maskrcnn.data.formats.dataset import Dataset, ImageFile, common_folder
from d2_maskrcnn.data.image_reading import image_size
from d2_maskrcnn.data.json_files import read_json
from d2_maskrcnn.errors import UserError

READERS = 8  # threads that read image headers
_PROBED = 50  # images that are looked up to choose their folder


@dataclass(slots=True)
class Reference:
    """An image as an annotation file names it.

    Attributes:
        file_name: may be a URL or a path of another machine.
        where: place in the source, for messages.
        split: see :class:`ImageFile`.
        id: in the source; None numbers the images from 1 on.
        declared_size: (width, height) that the annotation file gives.
        folders: where to search; None: the folders that are common to all references.
        folder_name: the folder in the dataset that the image's name starts with; "" if none.
        embedded_in: the LabelMe file that may contain the image.
    """

    file_name: str
    where: str
    split: str = ""
    id: int | None = None
    declared_size: tuple[Any, Any] | None = None
    folders: list[Path] | None = None
    folder_name: str = ""
    embedded_in: Path | None = None


def add_images(dataset: Dataset, references: Sequence[Reference], folders: Sequence[Path]) -> dict[int, ImageFile]:
    """Add the images that exist to a dataset and drop the others.

    Args:
        dataset: gets the images, in place.
        references: the images of the annotation file.
        folders: where to search, the most likely folder first; the one that contains the most of them is preferred.

    Returns:
        The images by their index in ``references``.
    """
    ordered = _preferred_first([each.file_name for each in references[:_PROBED]], folders)
    found = [find_image(each.file_name, each.folders or ordered) for each in references]
    sizes = _read_sizes(
        [place[0] if place else each.embedded_in for place, each in zip(found, references, strict=True)]
    )
    taken = {(image.split, image.name) for image in dataset.images}
    added = {}
    for index, (reference, place, size) in enumerate(zip(references, found, sizes, strict=True)):
        if place is None and reference.embedded_in is None:
            outside = safe_name(reference.file_name) is None
            reason = "a path outside of the dataset's folder" if outside else "no such file"
            dataset.drop("image", reference.where, reason, reference.file_name)
            continue
        if isinstance(size, UserError):
            dataset.drop("image", reference.where, "not a readable image", size)
            continue
        path, name = place or _embedded(reference)
        name = f"{reference.folder_name}/{name}" if reference.folder_name else name
        if (reference.split, name) in taken:
            dataset.drop("image", reference.where, "a file that another image has", name)
            continue
        taken.add((reference.split, name))
        number = len(dataset.images) + 1 if reference.id is None else reference.id
        image = ImageFile(number, path, name, *size, reference.split, reference.declared_size, reference.id)
        image.embedded_in = None if place else reference.embedded_in
        dataset.images.append(image)
        added[index] = image
    return added


def _preferred_first(names: list[str], folders: Sequence[Path]) -> list[Path]:
    if len(folders) < 2 or not names:
        return list(folders)
    safe = [name for name in map(safe_name, names) if name]
    best = max(folders, key=lambda folder: sum(os.path.isfile(folder / name) for name in safe))
    return [best, *folders]


def find_image(file_name: str, folders: Sequence[Path]) -> tuple[Path, str] | None:
    """Return the path of an image and its name in its folder.

    A name that leaves the folders, such as an absolute path of another machine, is looked up by its last part. Of Label
    Studio's addresses ``/data/local-files/?d=images/a.jpg`` the path counts.
    """
    file_name = file_name.split("?d=", 1)[-1]
    if os.path.isabs(file_name):
        for folder in folders:
            if is_inside(folder, file_name) and os.path.isfile(file_name):
                return Path(file_name), Path(os.path.relpath(file_name, folder)).as_posix()
    base = file_name.split("?", 1)[0].replace("\\", "/").rsplit("/", 1)[-1]
    for name in dict.fromkeys(map(safe_name, (file_name, unquote(file_name), base, unquote(base)))):
        for folder in folders if name else []:
            path = folder / str(name)
            if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
                return Path(os.path.abspath(path)), str(name)
    return None


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


def nearest_image_folder(json_file: Path, names: Sequence[Any]) -> tuple[Path, int]:
    """Find the folder near a COCO JSON that its ``file_name`` entries are relative to.

    Args:
        json_file: the file.
        names: the entries, unchecked. If all are absolute, the folder is the innermost one that contains all images.

    Returns:
        The one of :func:`candidate_folders` that contains most of the first images, and how many of these it contains.
    """
    usable = [name for name in names if isinstance(name, str) and name and "\0" not in name]
    probed, folders = usable[:_PROBED], candidate_folders(json_file)
    if usable and all(map(os.path.isabs, usable)):
        folders = [common_folder(usable)]
    hits = [sum(is_inside(folder, name) and os.path.isfile(folder / name) for name in probed) for folder in folders]
    return folders[hits.index(max(hits))], max(hits)


def safe_name(name: str) -> str | None:
    """Return a path inside a folder as ``a/b.jpg``, or None if it is absolute, leaves the folder or is not a path."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0].startswith("/") or ":" in parts[0] or "\0" in name:
        return None
    return "/".join(parts)


def _embedded(reference: Reference) -> tuple[Path, str]:
    json_file = Path(os.path.abspath(str(reference.embedded_in)))
    name = safe_name(reference.file_name.replace("\\", "/").rsplit("/", 1)[-1]) or f"{json_file.stem}.png"
    return json_file.parent / name, name


def embedded_image(json_file: Path) -> bytes:
    """Return the content of the image in a LabelMe file.

    Raises:
        UserError: the file cannot be read or contains no image.
    """
    try:
        return decode_base64(read_json(json_file).get("imageData"), "'imageData' that is not an image in base64")
    except UserError as error:
        raise UserError(f"{json_file}: {error}; export it again") from error


def decode_base64(data: Any, what: str) -> bytes:
    """Decode base64.

    Raises:
        UserError: ``data`` is something else, which ``what`` describes.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise UserError(what) from error


def _read_sizes(paths: Sequence[Path | None]) -> list[tuple[int, int] | UserError]:
    """Read (width, height) of upright images from the headers of their files; an error instead where that fails."""

    def size(path: Path | None) -> tuple[int, int] | UserError:
        try:
            if path is None:
                return (0, 0)
            return image_size(embedded_image(path) if path.suffix == ".json" else path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(size, paths))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without surrounding spaces.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
