"""Read a COCO JSON file, and recognize files of other formats."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_maskrcnn.errors import UserError

_LISTS = ("images", "annotations", "categories")


def read_coco_json(json_file: str | os.PathLike[str], annotations_required: bool = True) -> dict[str, Any]:
    """Read a COCO JSON file in UTF-8, UTF-16 or UTF-32, with or without byte order mark, whatever the locale.

    Values that are equal in JSON become equal in Python: sizes and counts of RLEs such as ``96.0`` become integers, and
    ``iscrowd`` becomes 0 or 1. Nothing else is changed or checked; see :mod:`d2_maskrcnn.data.coco.checks`.

    Args:
        json_file: the file.
        annotations_required: whether a file without the list ``annotations`` is refused. Otherwise it becomes empty.

    Returns:
        The content: a dict in which ``images``, ``annotations`` and ``categories`` are lists of unchecked entries.

    Raises:
        UserError: the file does not exist, is not JSON (with line and column), repeats a key, or is not COCO JSON.
            Formats of other tools are recognized, and the message says how to convert them.
    """
    path = Path(json_file)
    data = _parse(path)
    other = _recognize(data)
    if other is not None:
        raise UserError(f"{path}: {other}")
    if not isinstance(data, dict):
        raise UserError(f"{path}: not COCO JSON but {_kind(data)}; expected an object with {_quoted(_LISTS)}")
    if not annotations_required:
        data.setdefault("annotations", [])
    missing = [key for key in _LISTS if key not in data]
    if missing:
        present = _quoted(list(data)[:6]) or "nothing"
        raise UserError(
            f"{path}: not COCO JSON, {_quoted(missing)} missing; it has {present}; expected {_quoted(_LISTS)}"
        )
    for key in _LISTS:
        if not isinstance(data[key], list):
            raise UserError(f"{path}: not COCO JSON, {key!r} is {_kind(data[key])}; expected a list of objects")
    _normalize(data["annotations"])
    return data


def is_plain_utf8(json_file: str | os.PathLike[str]) -> bool:
    """Return whether a file is UTF-8 without byte order mark, as Detectron2's own COCO reader needs it."""
    with open(json_file, "rb") as file:
        return json.detect_encoding(file.read(4)) == "utf-8"


def _parse(path: Path) -> Any:
    if not path.is_file():
        if path.is_dir():
            what = "it is a folder"
        elif path.exists():
            what = "it is a FIFO, device or socket"
        else:
            what = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"{path}: {what}; expected a COCO JSON file (datasets/README.md describes the layout)")

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            _refuse_repeated_key(path, pairs)
        return entry

    try:
        with path.open("rb") as file, _no_garbage_collection():
            return json.load(file, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON, {error.msg} at line {error.lineno}, column {error.colno}; "
            "is it truncated? Export or copy it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not JSON, byte {error.start} is not {error.encoding.upper()} text; export it again as UTF-8"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: not COCO JSON, it is nested too deeply; expected COCO's three lists") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
    except UserError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise UserError(f"{path}: not COCO JSON, {error}; expected numbers of a few digits") from error


def _refuse_repeated_key(path: Path, pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    repeated = next(key for key in keys if keys.count(key) > 1)
    where = next((f"the object with id {value!r}" for key, value in pairs if key == "id"), "one object")
    raise UserError(
        f"{path}: the key {repeated!r} occurs {keys.count(repeated)} times in {where}; JSON readers use the last value "
        "only: delete the others"
    )


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Disable the garbage collector: parsing makes millions of objects, and searching them takes longer than that."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _normalize(annotations: list[Any]) -> None:
    """Make integers of whole floats in RLEs, and 0 or 1 of ``iscrowd``; in place. Other values are left alone."""
    for annotation in annotations:
        if type(annotation) is not dict:
            continue
        rle = annotation.get("segmentation")
        if type(rle) is dict:
            for key in ("size", "counts"):
                if type(rle.get(key)) is list and float in map(type, rle[key]):
                    rle[key] = [int(v) if type(v) is float and v.is_integer() else v for v in rle[key]]
        crowd = annotation.get("iscrowd", 0)
        if type(crowd) is not int and crowd in (0, 1):
            annotation["iscrowd"] = int(crowd)


def _recognize(data: Any) -> str | None:
    """Describe a file of another format and how to convert it; None if it is not recognized."""
    via = "this is JSON of the VGG Image Annotator (VIA); convert it with datasets/prepare_balloon.py"
    if isinstance(data, list):
        if data and isinstance(data[0], dict) and {"image_id", "score"} <= data[0].keys():
            return "these are detections in COCO's results format, not annotations; expected the ground truth"
        return None
    if not isinstance(data, dict):
        return None
    if {"shapes", "imagePath"} <= data.keys():
        return (
            "this is JSON of LabelMe, one file per image; convert the folder with LabelMe's labelme2coco.py "
            "(examples/instance_segmentation in its repository)"
        )
    if "_via_img_metadata" in data:
        return via
    for entry in list(data.values())[:1]:
        if isinstance(entry, dict) and {"filename", "regions"} <= entry.keys():
            return via
    return _recognize_other_coco(data.get("annotations"))


def _recognize_other_coco(annotations: Any) -> str | None:
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict) or "bbox" in first:
        return None
    expected = "expected instances, such as annotations/instances_train2017.json"
    if "segments_info" in first:
        return f"this is COCO's panoptic JSON; {expected}"
    return f"these are COCO's captions; {expected}" if "caption" in first else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


def _quoted(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(repr(key) for key in keys)
