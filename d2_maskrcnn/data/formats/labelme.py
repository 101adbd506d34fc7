"""Read LabelMe: one JSON file per image.

Shapes with the same label and ``group_id`` are one object. Polygons, rectangles, circles and masks have an area; points
and lines are dropped. The labels ``__ignore__`` and ``_background_`` are no objects. The flag ``crowd`` of a shape,
which the writer sets, marks a crowd.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, Segmentation
from d2_maskrcnn.data.formats.image_references import Reference, add_images, decode_base64, read_lines
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.image_reading import read_labels
from d2_maskrcnn.data.json_files import recognize_json
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import Window, encode_rle

NO_OBJECTS = ("__ignore__", "_background_")
_SPLITS = ("train", "val", "valid", "test")


def read(source: Source) -> Dataset:
    """Read the LabelMe files of a folder. In folders such as ``train`` and ``val`` they are splits."""
    dataset = Dataset(str(source.path), "labelme")
    root = source.path if source.path.is_dir() else source.path.parent
    files, references = [], []
    for path in source.files:
        try:
            content = source.document(path)
        except UserError as error:
            dataset.drop("file", str(path), "a file that cannot be read", str(error).removeprefix(f"{path}: "))
            continue
        if recognize_json(content) != "labelme" or not isinstance(content["shapes"], list):
            dataset.drop("file", str(path), "not JSON of LabelMe")
            continue
        content["imageData"] = bool(content.get("imageData"))  # images are large, and are read again where needed
        files.append((path, content["shapes"]))
        references.append(_reference(path, root, content, source.images))
    images = add_images(dataset, references, [])
    for label in _labels(root, files):
        dataset.add_category(label)
    for index, (path, found) in enumerate(files):
        if index in images:
            _add_shapes(dataset, images[index], path, found)
        else:
            _drop_shapes(dataset, path, found)
    return dataset


def _reference(path: Path, root: Path, content: dict[str, Any], images: Path | None) -> Reference:
    folder = path.parent.relative_to(root).as_posix().removeprefix(".")
    split, _, rest = folder.partition("/")
    known = split.startswith(_SPLITS)
    name = content.get("imagePath")
    return Reference(
        name if isinstance(name, str) and name else f"{path.stem}.png",
        str(path),
        {"valid": "val"}.get(split, split) if known else "",
        declared_size=(content.get("imageWidth"), content.get("imageHeight")),
        folders=[each for each in (images, path.parent) if each],
        folder_name=rest if known else folder,
        embedded_in=path if content["imageData"] else None,
    )


def _labels(root: Path, files: list[tuple[Path, list[Any]]]) -> list[str]:
    """Return the labels in the order of LabelMe's ``labels.txt``, if there is one, then those it lacks by name."""
    used = {each["label"] for _, found in files for each in found if _is_object(each)}
    listed = read_lines(root / "labels.txt") if (root / "labels.txt").is_file() else []
    return [label for label in dict.fromkeys([*listed, *sorted(used)]) if label and label not in NO_OBJECTS]


def _is_object(shape: Any) -> bool:
    label = shape.get("label") if isinstance(shape, dict) else None
    return isinstance(label, str) and bool(label.strip()) and label not in NO_OBJECTS


def _drop_shapes(dataset: Dataset, path: Path, found: list[Any]) -> None:
    for index, shape in enumerate(found):
        if _is_object(shape):
            dataset.drop("annotation", f"{path}: shape {index}", "its image was dropped")


def _add_shapes(dataset: Dataset, image: ImageFile, path: Path, found: list[Any]) -> None:
    for group in _groups(dataset, path, found):
        where = f"{path}: shape {group[0][0]}"
        parts: list[Segmentation] = []
        for index, shape in group:
            with dataset.dropping(f"{path}: shape {index}"):
                parts.append(_segmentation(shape, image))
        if parts:
            first = group[0][1]
            crowd = isinstance(first.get("flags"), dict) and first["flags"].get("crowd") is True
            category = dataset.add_category(first["label"])
            dataset.annotations.append(
                Annotation(
                    image.id,
                    category,
                    shapes.union(parts, image),
                    iscrowd=int(crowd),
                    id=len(dataset.annotations) + 1,
                    where=where,
                )
            )


def _groups(dataset: Dataset, path: Path, found: list[Any]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield the shapes of each object with their index, in order of the first one."""
    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for index, shape in enumerate(found):
        if not _is_object(shape):
            if not isinstance(shape, dict) or shape.get("label") not in NO_OBJECTS:
                dataset.drop("annotation", f"{path}: shape {index}", "a shape without a label")
            continue
        group = shape.get("group_id")
        groups.setdefault(index if group is None else (shape["label"], str(group)), []).append((index, shape))
    yield from groups.values()


def _segmentation(shape: dict[str, Any], image: ImageFile) -> Segmentation:
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    if kind in ("polygon", "oriented_rectangle"):
        return [shapes.polygon(points)]
    if kind not in ("rectangle", "circle", "mask"):
        raise UserError(f"a shape of type {str(kind)!r:.30}, which has no area")
    if not isinstance(points, list) or len(points) != 2:
        raise UserError(f"a {kind} without its two points")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise UserError(f"a {kind} whose points are not pairs of numbers")
    (x0, y0), (x1, y1) = (shapes.numbers(point, "points") for point in points)
    if kind == "circle":
        radius = float(np.hypot(x1 - x0, y1 - y0))
        return [shapes.ellipse(x0, y0, radius, radius)]
    if kind == "rectangle":
        return [shapes.rectangle(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0))]
    return _mask(shape.get("mask"), int(x0), int(y0), image)


def _mask(data: Any, x: int, y: int, image: ImageFile) -> Segmentation:
    mask = read_labels(decode_base64(data, "a mask that is not a PNG in base64")) > 0
    height, width = mask.shape
    window = Window(max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height))
    if window.x0 >= window.x1 or window.y0 >= window.y1:
        raise UserError("outside of its image")
    inside = mask[window.y0 - y : window.y1 - y, window.x0 - x : window.x1 - x]
    return encode_rle(inside, window, (image.height, image.width))
