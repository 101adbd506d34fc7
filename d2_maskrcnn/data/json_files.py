"""Read JSON files of annotation tools, and recognize the tool by the content."""

import contextlib
import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_maskrcnn.errors import UserError


def read_json(json_file: str | os.PathLike[str]) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without byte order mark, whatever the locale.

    Raises:
        UserError: the file does not exist, is not JSON (with line and column), or repeats a key.
    """
    path = Path(json_file)

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) != len(pairs):
            _refuse_repeated_key(path, pairs)
        return entry

    try:
        with _regular(path).open("rb") as file, _no_garbage_collection():
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
        raise UserError(
            f"{path}: not JSON of annotations, it is nested too deeply; expected an annotation tool's export"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions") from error
    except UserError:
        raise
    except ValueError as error:  # an integer of more digits than Python converts
        raise UserError(f"{path}: not JSON of annotations, {error}; expected numbers of a few digits") from error


def _regular(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        what = "it is a folder"
    elif path.exists():
        what = "it is a FIFO, device or socket"
    else:
        what = "no such file" if path.parent.is_dir() else f"there is no folder {path.parent}"
    raise UserError(f"{path}: {what}; expected a JSON file (datasets/README.md describes the layout)")


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


def as_dict(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a dict, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return ``value`` if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def recognize_json(data: Any) -> str | None:
    """Return the annotation format of parsed JSON: "coco", "via", "labelme" or "label-studio"; None if unknown."""
    if isinstance(data, list):
        return "label-studio" if _is_label_studio_task(data[0] if data else None) else None
    if not isinstance(data, dict):
        return None
    if "shapes" in data and ("imagePath" in data or "imageData" in data):
        return "labelme"
    if "_via_img_metadata" in data or {"file", "view", "metadata", "attribute"} <= data.keys():
        return "via"
    if {"images", "annotations", "categories"} <= data.keys():
        return None if other_coco(data) else "coco"
    first = next(iter(data.values()), None)
    if isinstance(first, dict) and {"filename", "regions"} <= first.keys():
        return "via"
    return "label-studio" if _is_label_studio_task(data) else None


def _is_label_studio_task(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict):
        return False
    return any(isinstance(entry.get(key), list) for key in ("annotations", "completions", "predictions"))


def other_coco(data: Any) -> str | None:
    """Describe JSON of COCO that has no instance annotations: detections, captions, panoptic; None for other files."""
    if isinstance(data, list):
        if data and isinstance(data[0], dict) and {"image_id", "score"} <= data[0].keys():
            return "these are detections in COCO's results format, not annotations; expected the ground truth"
        return None
    annotations = data.get("annotations") if isinstance(data, dict) else None
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if not isinstance(first, dict) or "bbox" in first:
        return None
    expected = "expected instances, such as annotations/instances_train2017.json"
    if "segments_info" in first:
        return f"this is COCO's panoptic JSON; {expected}"
    return f"these are COCO's captions; {expected}" if "caption" in first else None
