"""Read a COCO JSON file, and recognize files of other formats."""

import json
import os
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.json_files import other_coco, read_json, recognize_json
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
    return check_coco(path, read_json(path), annotations_required)


def check_coco(path: Path, data: Any, annotations_required: bool = True) -> dict[str, Any]:
    """Check that parsed JSON is COCO's and normalize it in place; see :func:`read_coco_json`."""
    other = _other_format(path, data)
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


def _normalize(annotations: list[Any]) -> None:
    """Convert whole floats in RLEs to integers, and ``iscrowd`` to 0 or 1, in place; leave other values unchanged."""
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


def _other_format(path: Path, data: Any) -> str | None:
    """Describe a file of another format and how to convert it; None if it is not recognized."""
    name = recognize_json(data)
    if name is None or name == "coco":
        return other_coco(data)
    what = {
        "via": "the VGG Image Annotator (VIA)",
        "labelme": "LabelMe, one file per image",
        "label-studio": "Label Studio",
    }
    source = path.parent if name == "labelme" else path
    return f"this is JSON of {what[name]}; convert {source} to COCO JSON with `d2-maskrcnn convert`"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")


def _quoted(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(repr(key) for key in keys)
