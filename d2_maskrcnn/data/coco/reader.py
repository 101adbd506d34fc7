"""Reading a COCO JSON file, and telling what a file is that is none."""

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
    """Reads a COCO JSON file.

    Args:
        json_file: the file.
        annotations_required: whether a file without the list ``annotations`` (a test set, say) is refused.

    Returns:
        Its content: a dict in which ``images``, ``annotations`` and ``categories`` are lists, of anything as yet.

    Raises:
        UserError: no such file, no JSON (with line and column), or JSON that is not COCO; other tools' formats are
            recognised and the way from them to COCO is told.
    """
    path = Path(json_file)
    data = _parse(path)
    other = _recognise(data)
    if other is not None:
        raise UserError(f"{path}: {other}")
    if not isinstance(data, dict):
        raise UserError(f"{path}: not COCO JSON, it holds {_kind(data)}; expected an object with {_listed(_LISTS)}")
    if not annotations_required:
        data.setdefault("annotations", [])
    missing = [key for key in _LISTS if key not in data]
    if missing:
        found = _listed(list(data)[:6]) or "nothing"
        raise UserError(
            f"{path}: not COCO JSON, {_listed(missing)} missing; it has {found}; expected {_listed(_LISTS)}"
        )
    for key in _LISTS:
        if not isinstance(data[key], list):
            raise UserError(f"{path}: not COCO JSON, {key!r} is {_kind(data[key])}; expected a list of objects")
    return data


def _parse(path: Path) -> Any:
    if not path.is_file():
        missing = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
        what = "it is a folder" if path.is_dir() else missing
        raise UserError(f"{path}: {what}; expected a COCO JSON file (datasets/README.md shows where data goes)")
    try:
        with path.open("rb") as file, _no_garbage_collection():
            return json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: not JSON, {error.msg} at line {error.lineno}, column {error.colno} of "
            f"{path.stat().st_size} bytes; is the file cut off? Download or export it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not JSON, byte {error.start} is no UTF-8 text; export it again as UTF-8") from error
    except RecursionError as error:
        raise UserError(f"{path}: not COCO JSON, it is nested too deeply; expected COCO's three lists") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no garbage: to look for some takes longer than to parse COCO's JSON."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _recognise(data: Any) -> str | None:
    """What a file is that is not COCO's, and how to convert it; None where nothing is recognised."""
    via = "this is JSON of the VGG Image Annotator (VIA); convert it with datasets/prepare_balloon.py"
    if isinstance(data, list):
        if data and isinstance(data[0], dict) and {"image_id", "score"} <= data[0].keys():
            return "these are detections (COCO's results format), not annotations; expected the ground truth's JSON"
        return None
    if not isinstance(data, dict):
        return None
    if {"shapes", "imagePath"} <= data.keys():
        return (
            "this is JSON of LabelMe, one file for each image; convert the folder with LabelMe's labelme2coco.py "
            "(examples/instance_segmentation in its repository)"
        )
    if "_via_img_metadata" in data:
        return via
    for entry in list(data.values())[:1]:
        if isinstance(entry, dict) and {"filename", "regions"} <= entry.keys():
            return via
    return _recognise_other_coco(data.get("annotations"))


def _recognise_other_coco(annotations: Any) -> str | None:
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict) or "bbox" in first:
        return None
    expected = "expected instances, say annotations/instances_train2017.json"
    if "segments_info" in first:
        return f"this is COCO's panoptic JSON; {expected}"
    return f"these are COCO's captions; {expected}" if "caption" in first else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")


def _listed(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(repr(key) for key in keys)
