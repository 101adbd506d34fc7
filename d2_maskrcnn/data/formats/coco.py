"""Read COCO JSON of any tool: COCO's own layout, Roboflow's folders, and the exports of CVAT and Label Studio."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from d2_maskrcnn.data.coco.reader import check_coco
from d2_maskrcnn.data.flaws.flaw import shorten
from d2_maskrcnn.data.flaws.images import candidate_folders
from d2_maskrcnn.data.flaws.schema import CATEGORY_RULES, IMAGE_RULES, first_fault, is_id
from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, ImageFile, merge, read_sizes, safe_name
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.errors import UserError

_NO_SPLIT = ("annotations", "_annotations.coco", "result", "instances_default", "instances", "coco", "labels")
_LEADING = re.compile(r"^(instances|annotations|person_keypoints)_")
_PROBED = 50  # images by which the folder of the images is chosen


def read(source: Source, image_root: Path | None = None) -> Dataset:
    """Read COCO JSON files, one per split.

    Args:
        source: the files, as :func:`~d2_maskrcnn.data.formats.recognize` returns them.
        image_root: folder that ``file_name`` is relative to; None searches near each file.

    Raises:
        UserError: a file is not COCO JSON.
    """
    parts = []
    for path in source.files:
        data = check_coco(path, source.document(path), annotations_required=False)
        parts.append(_read_file(path, data, _split(path), image_root))
    return parts[0] if len(parts) == 1 else merge(str(source.path), parts)


def _split(path: Path) -> str:
    """Return the split by the file's name, or by its folder's name in Roboflow's ``valid/_annotations.coco.json``."""
    if path.name == "_annotations.coco.json":
        name = path.parent.name
        return {"valid": "val"}.get(name, name if name in ("train", "test", "val") else "")
    return "" if path.stem in _NO_SPLIT else _LEADING.sub("", path.stem)


def _read_file(path: Path, data: dict[str, Any], split: str, image_root: Path | None) -> Dataset:
    dataset = Dataset(str(path), "coco")
    for entry in _sound(dataset, data["categories"], "category", CATEGORY_RULES):
        dataset.categories.append(Category(entry["id"], entry["name"]))
    dataset.categories.sort(key=lambda category: category.id)
    entries = list(_sound(dataset, data["images"], "image", (IMAGE_RULES[0], IMAGE_RULES[1])))
    _add_images(dataset, entries, split, [image_root] if image_root else candidate_folders(path))
    known = {image.id for image in dataset.images}
    listed = {entry["id"] for entry in entries}
    categories = {category.id for category in dataset.categories}
    for index, entry in enumerate(data["annotations"]):
        where = _where(dataset, "annotation", index, entry)
        if not isinstance(entry, dict):
            dataset.drop("annotation", where, "not a JSON object", shorten(entry))
        elif not is_id(entry.get("image_id")) or entry["image_id"] not in listed:
            dataset.drop("annotation", where, "unknown image_id", shorten(entry.get("image_id")))
        elif entry["image_id"] not in known:
            dataset.drop("annotation", where, "its image was dropped", entry["image_id"])
        elif not is_id(entry.get("category_id")) or entry["category_id"] not in categories:
            dataset.drop("annotation", where, "unknown category_id", shorten(entry.get("category_id")))
        else:
            dataset.annotations.append(_annotation(entry, where))
    return dataset


def _sound(dataset: Dataset, entries: list[Any], kind: str, rules: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """Yield the entries that pass the rules and whose id is new, and drop the others."""
    seen = set()
    for index, entry in enumerate(entries):
        fault = first_fault(entry, rules) if isinstance(entry, dict) else ("not a JSON object", shorten(entry))
        if fault is None and entry["id"] in seen:
            fault = ("an id that another one has", entry["id"])
        if fault is not None:
            dataset.drop(kind, _where(dataset, kind, index, entry), *fault)
            continue
        seen.add(entry["id"])
        yield entry


def _where(dataset: Dataset, kind: str, index: int, entry: Any) -> str:
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"{dataset.source}: {kind} {f'at position {index}' if number is None else shorten(number)}"


def _add_images(dataset: Dataset, entries: list[dict[str, Any]], split: str, folders: list[Path]) -> None:
    found = [_find(entry["file_name"], folders) for entry in entries]
    if len(folders) > 1 and entries:
        probed = [entry["file_name"] for entry in entries[:_PROBED]]
        best = max(folders, key=lambda folder: sum((folder / (safe_name(name) or "\0")).is_file() for name in probed))
        found = [_find(entry["file_name"], [best, *folders]) for entry in entries]
    sizes = iter(read_sizes([path for path, _ in filter(None, found)]))
    names: set[str] = set()
    for entry, place in zip(entries, found, strict=True):
        where = f"{dataset.source}: image {entry['id']}"
        if place is None:
            reason = "no such file" if safe_name(entry["file_name"]) else "a path outside of the dataset's folder"
            dataset.drop("image", where, reason, entry["file_name"])
            continue
        (path, name), size = place, next(sizes)
        if isinstance(size, UserError):
            dataset.drop("image", where, "not a readable image", size)
        elif name in names:
            dataset.drop("image", where, "a file that another image has", name)
        else:
            names.add(name)
            declared = (entry.get("width"), entry.get("height"))
            dataset.images.append(ImageFile(entry["id"], path, name, *size, split, declared, entry["id"]))


def _find(file_name: str, folders: list[Path]) -> tuple[Path, str] | None:
    """Return the path of an image and its name in its folder; tools also write URLs and paths of other machines."""
    name = safe_name(file_name)
    names = [name, safe_name(unquote(file_name))] if name else []
    base = file_name.replace("\\", "/").rsplit("/", 1)[-1]
    for each in filter(None, [*names, safe_name(base)]):
        for folder in folders:
            if (folder / each).is_file():
                return Path(os.path.abspath(folder / each)), each
    return None


def _annotation(entry: dict[str, Any], where: str) -> Annotation:
    segmentation = entry.get("segmentation")
    return Annotation(
        entry["image_id"],
        entry["category_id"],
        [] if segmentation is None else segmentation,
        entry.get("bbox"),
        1 if entry.get("iscrowd") == 1 else 0,
        entry.get("id"),
        entry.get("area"),
        entry.get("score"),
        where,
    )
