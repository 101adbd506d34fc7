"""Read COCO JSON of any tool: COCO's own layout, Roboflow's folders, and the exports of CVAT and Label Studio."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.coco.reader import check_coco
from d2_maskrcnn.data.flaws.flaw import shorten
from d2_maskrcnn.data.flaws.schema import CATEGORY_RULES, IMAGE_RULES, first_fault, is_id
from d2_maskrcnn.data.formats.dataset import Annotation, Category, Dataset, merge, usual_split
from d2_maskrcnn.data.formats.image_references import Reference, add_images, candidate_folders, nearest_image_folder
from d2_maskrcnn.data.formats.recognition import Source

_LEADING = re.compile(r"^(instances|annotations|person_keypoints)_")


def read(source: Source) -> Dataset:
    """Read COCO JSON files, one per split.

    Raises:
        UserError: a file is not COCO JSON.
    """
    parts = []
    for path in source.files:
        data = check_coco(path, source.document(path), annotations_required=False)
        parts.append(_read_file(path, data, _split(path, alone=len(source.files) == 1), source.images))
    return parts[0] if len(parts) == 1 else merge(str(source.path), parts)


def _split(path: Path, alone: bool) -> str:
    """Return the split by the file's name, or by its folder's name in Roboflow's ``valid/_annotations.coco.json``.

    A file that is the only one has no split, unless its name is that of a usual one.
    """
    if path.name == "_annotations.coco.json":
        return usual_split(Path(path.parent.name))
    name = _LEADING.sub("", path.stem)
    return "" if name == "default" or (alone and not usual_split(Path(name))) else name


def _read_file(path: Path, data: dict[str, Any], split: str, image_root: Path | None) -> Dataset:
    dataset = Dataset(str(path), "coco")
    for entry in _sound(dataset, data["categories"], "category", CATEGORY_RULES):
        dataset.categories.append(Category(entry["id"], entry["name"]))
    dataset.categories.sort(key=lambda category: category.id)
    entries = list(_sound(dataset, data["images"], "image", (IMAGE_RULES[0], IMAGE_RULES[1])))
    references = [
        Reference(
            entry["file_name"],
            f"{path}: image {entry['id']}",
            split,
            entry["id"],
            (entry.get("width"), entry.get("height")),
        )
        for entry in entries
    ]
    near = [nearest_image_folder(path, [each.file_name for each in references])[0], *candidate_folders(path)]
    add_images(dataset, references, [image_root] if image_root else near)
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
