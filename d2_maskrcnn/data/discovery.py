"""Find the training and validation data in a folder or JSON file, or split off validation data."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2_maskrcnn.data.coco.checks import check_coco_json
from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.flaws.table import CocoTable
from d2_maskrcnn.data.formats import FORMATS, recognize
from d2_maskrcnn.data.own_data import guess_image_folder
from d2_maskrcnn.data.splitting import assign_parts
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import atomic_write_text

VAL_SHARE = 0.2  # of the images, where validation data is split off
MAX_VAL = 1000  # images
_ROLE = re.compile(r"(?:^|[^a-z])(train|valid|val|dev|test)")
_ROLES = {"valid": "val", "dev": "val"}


@dataclass(frozen=True)
class FoundData:
    """Training and validation data.

    Attributes:
        train_json, val_json: COCO JSON files.
        train_images, val_images: the folders that their file names are relative to.
        note: how validation data was chosen, if it is not that of the dataset; else "".
    """

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    note: str = ""


def find_training_data(path: str | Path, folder: Path, val: str | Path | None = None, seed: int = 0) -> FoundData:
    """Find the training and validation data of a dataset in COCO format.

    The names of the JSON files, or else of their folders, tell the splits: ``annotations/instances_train2017.json``,
    ``train/_annotations.coco.json``, ``train.json``. Without validation data, the test data is used; without both, a
    random fifth of the images is split off, with about the same share of the objects of each class.

    Args:
        path: folder of the dataset, or the COCO JSON of its training data.
        folder: where split JSON files are written.
        val: COCO JSON of the validation data, instead of what is found.
        seed: of the split.

    Raises:
        UserError: nothing is there, it is in another format or ambiguous, or the images are not found.
    """
    given = Path(path).expanduser()
    files = _by_role([each for each in _coco_files(given) if each != given])
    train = given if given.is_file() else _only(files["train"] or files[""], path, "training data")
    if val is not None:
        return _found(train, Path(val).expanduser(), "")
    if files["val"]:
        return _found(train, _only(files["val"], path, "validation data"), "")
    if files["test"]:
        test = _only(files["test"], path, "test data")
        return _found(train, test, f"no validation data: evaluated on the test data, {test.name}")
    return _split_off(train, folder, seed)


def find_test_data(path: str | Path) -> tuple[Path, Path]:
    """Find the COCO JSON of the validation data, else of the test data or the only one, and the folder of its images.

    Raises:
        UserError: see :func:`find_training_data`.
    """
    given = Path(path).expanduser()
    files = {"": [given]} if given.is_file() else _by_role(_coco_files(given))
    chosen = next((files[role] for role in ("val", "test", "", "train") if files.get(role)), [])
    test = _only(chosen, path, "test data")
    return test, _images(test)


def _coco_files(path: Path) -> list[Path]:
    source = recognize(path)
    if source.format != "coco":
        raise UserError(
            f"{path}: this is {FORMATS[source.format]}; expected COCO JSON. Convert it first: d2-maskrcnn convert "
            f"--input {path} --output FOLDER"
        )
    if not path.is_file():
        return source.files
    others = {
        each
        for split in ("val", "valid", "validation", "test")
        for each in (
            path.with_name(path.name.replace("train", split)),
            path.parent.with_name(path.parent.name.replace("train", split)) / path.name,
        )
    }
    return [path, *sorted(each for each in others - {path} if each.is_file())]


def _by_role(files: Sequence[Path]) -> dict[str, list[Path]]:
    roles: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for file in files:
        match = _ROLE.search(file.stem.lower()) or _ROLE.search(file.parent.name.lower())
        name = match.group(1) if match else ""
        roles[_ROLES.get(name, name)].append(file)
    return roles


def _only(files: Sequence[Path], path: str | Path, what: str) -> Path:
    if len(files) == 1:
        return files[0]
    if not files:
        raise UserError(f"{path}: no {what} found; expected COCO JSON such as annotations/instances_train.json")
    names = ", ".join(str(file) for file in files[:5])
    raise UserError(f"{path}: {len(files)} files could be the {what} ({names}); give the file instead of the folder")


def _found(train: Path, val: Path, note: str) -> FoundData:
    return FoundData(train, _images(train), val, _images(val), note)


def _images(json_file: Path) -> Path:
    return guess_image_folder(json_file, "D2_MASKRCNN.DATA.TRAIN_IMAGES or VAL_IMAGES")


def _split_off(json_file: Path, folder: Path, seed: int) -> FoundData:
    """Write two JSON files with the entries of one, whose ids they keep."""
    root = _images(json_file)
    check_coco_json(json_file, root)
    data = read_coco_json(json_file)
    if len(data["images"]) < 2:
        raise UserError(f"{json_file}: {len(data['images'])} images; expected at least 2, to train and to evaluate on")
    share = min(VAL_SHARE, MAX_VAL / len(data["images"]))
    part_of = assign_parts(
        _class_counts(CocoTable(data)), np.arange(len(data["images"])), np.array([1 - share, share]), seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "train.json", folder / "val.json"]
    for number, path in enumerate(paths):
        images = [image for image, part in zip(data["images"], part_of.tolist(), strict=True) if part == number]
        ids = {image["id"] for image in images}
        objects = [each for each in data["annotations"] if each["image_id"] in ids]
        atomic_write_text(path, json.dumps({**data, "images": images, "annotations": objects}))
    count = int(part_of.sum())
    note = f"{count} of the {len(part_of)} images of {json_file}, chosen at random with seed {seed}"
    return FoundData(paths[0], root, paths[1], root, note)


def _class_counts(table: CocoTable) -> np.ndarray:
    """Count the objects of each image and category: (images, categories) int64."""
    counts = np.zeros((len(table.images), len(table.categories)), dtype=np.int64)
    order = np.sort(table.category_ids)
    np.add.at(counts, (table.image_index, np.searchsorted(order, table.category_of)), 1)
    return counts
