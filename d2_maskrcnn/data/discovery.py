"""Find the training and validation data in a folder or JSON file, or split off validation data."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.coco.checks import check_coco_json
from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.conversion import convert
from d2_maskrcnn.data.flaws.schema import is_id
from d2_maskrcnn.data.formats import FORMATS, read, recognize
from d2_maskrcnn.data.formats.dataset import usual_split
from d2_maskrcnn.data.own_data import guess_image_folder
from d2_maskrcnn.data.splitting import split
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import write_output

VAL_SHARE = 0.2  # of the images, where validation data is split off
MAX_VAL = 1000  # images

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundData:
    """Training and validation data.

    Attributes:
        train_json, val_json: COCO JSON files.
        train_images, val_images: the folders that their file names are relative to.
        note: how validation data was chosen, if it is not that of the dataset; else "".
        origin: what was converted, and where to; "" for data in COCO format.
        split_from: the file that ``train_json`` and ``val_json`` were made from, if validation data was split off.
    """

    train_json: Path
    train_images: Path
    val_json: Path
    val_images: Path
    note: str = ""
    origin: str = ""
    split_from: Path | None = None


def find_training_data(path: str | Path, folder: Path, val: str | Path | None = None, seed: int = 0) -> FoundData:
    """Find the training and validation data of a dataset; formats other than COCO's are converted.

    The names of the JSON files, or else of their folders, tell the splits: ``annotations/instances_train2017.json``,
    ``train/_annotations.coco.json``, ``train.json``. Without validation data, the test data is used; without both, a
    random fifth of the images is split off, with about the same share of the objects of each class.

    Args:
        path: folder of the dataset, or the annotation file of its training data.
        folder: where split JSON files and a converted dataset are written.
        val: COCO JSON of the validation data, instead of what is found.
        seed: of the split.

    Raises:
        UserError: nothing is there, it is in no known format or ambiguous, or the images are not found.
    """
    given, origin = _as_coco(Path(path).expanduser(), folder)
    files = _by_role([each for each in _coco_files(given) if each != given])
    train = given if given.is_file() else _only(files["train"] or files[""], path, "training data")
    if val is not None:
        found = _found(train, Path(val).expanduser(), "")
    elif files["val"]:
        found = _found(train, _only(files["val"], path, "validation data"), "")
    elif files["test"]:
        found = _found(
            train, _only(files["test"], path, "test data"), "the test data, since there is no validation data"
        )
    else:
        found = _split_off(train, folder, seed)
    return replace(found, origin=origin)


def find_test_data(path: str | Path, folder: Path) -> tuple[Path, Path]:
    """Find the COCO JSON of the validation data, else of the test data or the only one, and the folder of its images.

    Args:
        path: folder of the dataset, or the annotation file to evaluate on.
        folder: where a dataset in another format is converted to.

    Raises:
        UserError: see :func:`find_training_data`.
    """
    given, _ = _as_coco(Path(path).expanduser(), folder)
    files = {"": [given]} if given.is_file() else _by_role(_coco_files(given))
    role = next((role for role in ("val", "test", "", "train") if files.get(role)), "")
    test = _only(files[role], path, "test data")
    if role not in ("val", "test") and test != given:
        logger.warning(
            "%s has no validation or test data: %s is evaluated, which may contain training images", path, test
        )
    return test, _images(test)


def _as_coco(path: Path, folder: Path) -> tuple[Path, str]:
    """Return ``path``, or a folder with its conversion to COCO's format, and what was converted."""
    source = recognize(path)
    if source.format == "coco":
        return path, ""
    done = convert(path, "coco", folder / "coco", overwrite=True)
    if done.dropped:
        logger.warning("%s: %d entries were left out in the conversion, see log.txt", path, len(done.dropped))
    logger.info("Converted:\n%s", done.table())
    return done.output, f"{FORMATS[source.format]} of {path}, converted to {done.output}"


def _coco_files(path: Path) -> list[Path]:
    if not path.is_file():
        return recognize(path).files
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
        roles[usual_split(file)].append(file)
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
    """Write two JSON files with the entries of one; those that cannot be used are left to the check of the training."""
    root = _images(json_file)
    dataset, data = read(json_file, root), read_coco_json(json_file, annotations_required=False)
    count = len(dataset.images)
    if count < 2 <= len(data["images"]):
        check_coco_json(json_file, root)  # says what is wrong with the others
    if count < 2:
        raise UserError(f"{json_file}: {count} images; expected at least 2, to train and to evaluate on")
    share = min(VAL_SHARE, MAX_VAL / count)
    chosen = {image.id for image in split(dataset, [1 - share, share], seed)[1].images}
    paths = [folder / "train.json", folder / "val.json"]
    for path, is_val in zip(paths, (False, True), strict=True):
        images = [each for each in data["images"] if _refers_to(each, "id", chosen) == is_val]
        objects = [each for each in data["annotations"] if _refers_to(each, "image_id", chosen) == is_val]
        write_output(path, json.dumps({**data, "images": images, "annotations": objects}))
    note = f"{len(chosen)} of the {count} images of {json_file}, chosen at random with seed {seed}"
    return FoundData(paths[0], root, paths[1], root, note, split_from=json_file)


def _refers_to(entry: Any, key: str, images: set[int]) -> bool:
    return isinstance(entry, dict) and is_id(entry.get(key)) and entry[key] in images
