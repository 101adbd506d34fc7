"""Read Label Studio's JSON: polygons, rectangles, ellipses and brush masks.

The image of a task is found by the last part of its address, with or without the prefix that an upload adds. Of several
annotations of a task one is used: the one marked as ground truth, or the first that was not skipped. Tasks without
annotations give their predictions, with scores.
"""

import re
from pathlib import Path
from typing import Any

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.brush import decode_brush
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, Segmentation, merge
from d2_maskrcnn.data.formats.image_references import Reference, add_images, find_image
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.formats.xml_files import read_xml
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import encode_rle

_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
_LABELS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels", "labels")
_IGNORED = ("choices", "textarea", "rating", "number", "taxonomy", "relation", "labels")  # results without a shape
CONFIG = "labeling_config.xml"  # name under which the writer saves the project's labeling interface
CROWD = "crowd"  # key in the ``meta`` of a result


def read(source: Source) -> Dataset:
    """Read Label Studio's files, exported as JSON."""
    parts = [_read_file(path, source.document(path), source.images) for path in source.files]
    return parts[0] if len(parts) == 1 else merge(str(source.path), parts)


def _read_file(path: Path, document: Any, images: Path | None) -> Dataset:
    dataset = Dataset(str(path), "label-studio")
    folders = [images] if images else [path.parent, path.parent / "images", path.parent.parent]
    tasks = [each for each in (document if isinstance(document, list) else [document]) if isinstance(each, dict)]
    references = [_reference(path, index, task, folders) for index, task in enumerate(tasks)]
    added = add_images(dataset, references, folders)
    results = [_results(dataset, reference.where, task) for reference, task in zip(references, tasks, strict=True)]
    used = {label for _, found in results for item in found if (label := _label(item, found))}
    for name in dict.fromkeys([*_configured_labels(path.with_name(CONFIG)), *sorted(used)]):
        dataset.add_category(name)
    for index, (score, found) in enumerate(results):
        for number, item in enumerate(found):
            if item.get("type") in _IGNORED:
                continue
            where = f"{references[index].where}: result {number}"
            if index not in added:
                dataset.drop("annotation", where, "its image was dropped")
                continue
            with dataset.dropping(where):
                _add(dataset, added[index], item, _label(item, found), score, where)
    return dataset


def _configured_labels(config: Path) -> list[str]:
    """Return the labels of a project's labeling interface in their order, if there is a file with it."""
    if not config.is_file():
        return []
    return [label.get("value") or "" for label in read_xml(config).iter("Label") if label.get("value")]


def _reference(path: Path, index: int, task: dict[str, Any], folders: list[Path]) -> Reference:
    given = task.get("data")
    data: dict[str, Any] = given if isinstance(given, dict) else {}
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str)]
    address = next(iter(texts), "")
    # http://host/a.jpg, /data/upload/3/1234abcd-a.jpg, /data/local-files/?d=images/a.jpg, s3://bucket/a.jpg
    name = address.split("?d=", 1)[-1].split("?", 1)[0].replace("\\", "/")
    base = name.rsplit("/", 1)[-1]
    split = str(data.get("split") or "")
    own = f"images/{split}/" if split else "images/"
    if name.startswith(own):  # as this package's writer names images
        name, folders = name.removeprefix(own), [path.parent / own, *folders]
    names = [name, base, _UPLOAD.sub("", base)]
    found = next((each for each in names if each and find_image(each, folders)), base or name)
    return Reference(found, f"{path}: task {task.get('id', index)}", split, folders=folders)


def _results(dataset: Dataset, where: str, task: dict[str, Any]) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the results of the annotation that is used, and the score if it is a prediction."""
    annotations = [each for each in task.get("annotations") or task.get("completions") or [] if isinstance(each, dict)]
    usable = [each for each in annotations if not each.get("was_cancelled")]
    usable.sort(key=lambda each: not each.get("ground_truth"))
    if usable or annotations:
        for _ in usable[1:]:
            dataset.drop("annotation", where, "another annotation of the same image")
        return None, _items(usable[0].get("result")) if usable else []
    predictions = [each for each in task.get("predictions") or [] if isinstance(each, dict)]
    score = predictions[0].get("score") if predictions else None
    return (float(score) if isinstance(score, (int, float)) else 1.0) if predictions else None, _items(
        predictions[0].get("result") if predictions else None
    )


def _items(result: Any) -> list[dict[str, Any]]:
    return [each for each in result if isinstance(each, dict)] if isinstance(result, list) else []


def _label(item: dict[str, Any], items: list[dict[str, Any]]) -> str | None:
    """Return the label of a result, which may be in another result of the same id."""
    same = [item, *(each for each in items if each is not item and each.get("id") == item.get("id") is not None)]
    for each in same:
        value = each.get("value")
        if not isinstance(value, dict):
            continue
        for key in _LABELS:
            labels = value.get(key)
            if isinstance(labels, list) and labels and isinstance(labels[0], str):
                return labels[0]
    return None


def _add(
    dataset: Dataset, image: ImageFile, item: dict[str, Any], label: str | None, score: float | None, where: str
) -> None:
    value = item.get("value")
    if not isinstance(value, dict):
        raise UserError("a result without a value")
    segmentation = _segmentation(value, str(item.get("type")), image)
    if label is None:
        raise UserError("a shape without a label")
    meta = item.get("meta")
    own = item.get("score")
    annotation = Annotation(image.id, dataset.add_category(label), segmentation, where=where)
    annotation.id = len(dataset.annotations) + 1
    annotation.iscrowd = int(isinstance(meta, dict) and meta.get(CROWD) is True)
    annotation.score = float(own) if isinstance(own, (int, float)) else score
    dataset.annotations.append(annotation)


def _segmentation(value: dict[str, Any], kind: str, image: ImageFile) -> Segmentation:
    """Convert a shape, whose lengths are percentages of the image's sides."""
    across, down = image.width / 100, image.height / 100
    turn = shapes.numbers([value.get("rotation") or 0], "a rotation")[0]
    if "points" in value:
        points = shapes.polygon(value["points"])
        scaled = [round(each * (down if index % 2 else across), 4) for index, each in enumerate(points)]
        return [scaled]
    if value.get("format") == "rle" or "rle" in value:
        return encode_rle(decode_brush(value.get("rle"), image.height, image.width))
    keys = ("x", "y", "radiusX", "radiusY") if "radiusX" in value else ("x", "y", "width", "height")
    if not set(keys) <= value.keys():
        raise UserError(f"a result of type {kind!r:.30}, which has no area")
    x, y, width, height = shapes.numbers([value[key] for key in keys], "values of a shape")
    make = shapes.ellipse if "radiusX" in value else shapes.rectangle
    return [make(x * across, y * down, width * across, height * down, turn)]
