"""Read the VGG Image Annotator (VIA): exports and projects of VIA 1 and 2, and projects of VIA 3.

Polygons, polylines (taken as closed), rectangles, circles and ellipses have an area; points and lines are dropped.
Corners of polygons are indices of pixels, so their centers are meant: 0.5 is added. Polygons are clipped to the image.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, merge
from d2_maskrcnn.data.formats.image_references import Reference, add_images
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.json_files import as_dict, as_list
from d2_maskrcnn.errors import UserError

_VIA3_SHAPES = {2: "rect", 3: "circle", 4: "ellipse", 6: "polyline", 7: "polygon", 8: "rect", 9: "circle"}
_USUAL = ("class", "label", "category", "name", "type", "object", "kind")  # attributes that usually name the category
_KEYS = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}


@dataclass
class _Region:
    where: str
    shape: dict[str, Any]
    attributes: dict[str, Any]


def read(source: Source) -> Dataset:
    """Read VIA files, one per split; a file in a folder ``train``, ``val`` or ``test`` is that split."""
    parts = []
    for path in source.files:
        dataset = Dataset(str(path), "via")
        document = source.document(path)
        entries = list(_entries_3(path, document) if "view" in document else _entries_2(path, document))
        split = path.parent.name if path.parent.name in ("train", "val", "test") else ""
        references = [Reference(name, f"{path}: {name}", split) for name, _ in entries]
        folders = [source.images] if source.images else [path.parent, path.parent / "images", path.parent.parent]
        images = add_images(dataset, references, folders)
        chosen = source.category_attribute or _category_attribute([region for _, each in entries for region in each])
        for index, (_, regions) in enumerate(entries):
            for region in regions:
                if index not in images:
                    dataset.drop("annotation", region.where, "its image was dropped")
                    continue
                with dataset.dropping(region.where):
                    _add(dataset, images[index], region, chosen, source)
        parts.append(dataset)
    return _in_order(merge(str(source.path), parts))


def _in_order(dataset: Dataset) -> Dataset:
    """Number the categories from 1 on in alphabetical order, the same in all splits."""
    names = {category.id: category.name for category in dataset.categories}
    dataset.categories.sort(key=lambda category: category.name)
    ids = {category.name: number for number, category in enumerate(dataset.categories, start=1)}
    for annotation in dataset.annotations:
        annotation.category_id = ids[names[annotation.category_id]]
    for category in dataset.categories:
        category.id = ids[category.name]
    return dataset


def _entries_2(path: Path, document: dict[str, Any]) -> Iterator[tuple[str, list[_Region]]]:
    """Yield the file name and the regions of each image of VIA 1 or 2."""
    for entry in map(as_dict, as_dict(document.get("_via_img_metadata", document)).values()):
        name, regions = entry.get("filename"), entry.get("regions")
        if not isinstance(name, str) or not name:
            continue
        numbered = regions if isinstance(regions, dict) else dict(enumerate(as_list(regions)))
        yield (
            name,
            [
                _Region(
                    f"{path}: {name}, region {number}",
                    as_dict(as_dict(region).get("shape_attributes")),
                    as_dict(as_dict(region).get("region_attributes")),
                )
                for number, region in numbered.items()
            ],
        )


def _entries_3(path: Path, document: dict[str, Any]) -> Iterator[tuple[str, list[_Region]]]:
    """Yield the file name and the regions of each image of VIA 3, whose views have one file each."""
    attributes = as_dict(document["attribute"])
    of_view: dict[str, list[_Region]] = {}
    for number, entry in as_dict(document["metadata"]).items():
        entry = as_dict(entry)
        if not as_list(entry.get("xy")):
            continue  # a time span, or attributes of the whole image
        values = {}
        for key, value in as_dict(entry.get("av")).items():
            attribute = as_dict(attributes.get(key))
            values[str(attribute.get("aname", key))] = _option(attribute, value)
        region = _Region(f"{path}: region {number}", _shape_3(entry["xy"]), values)
        of_view.setdefault(str(entry.get("vid")), []).append(region)
    files = as_dict(document["file"])
    for view, content in as_dict(document["view"]).items():
        for number in as_list(as_dict(content).get("fid_list"))[:1]:
            file = as_dict(files.get(str(number)))
            yield str(file.get("fname") or file.get("src")), of_view.get(view, [])


def _option(attribute: dict[str, Any], value: Any) -> Any:
    options = attribute.get("options")
    return options.get(str(value), value) if isinstance(options, dict) and options else value


def _shape_3(numbers: list[Any]) -> dict[str, Any]:
    """Convert VIA 3's [shape, number, ...] to the attributes of VIA 2."""
    kind, values = numbers[0], numbers[1:]
    name = _VIA3_SHAPES.get(kind, f"shape {kind}") if isinstance(kind, int) else str(kind)
    if name in ("polygon", "polyline"):
        return {"name": name, "all_points_x": values[::2], "all_points_y": values[1::2]}
    return {"name": name, **dict(zip(_KEYS.get(name, ()), values, strict=False))}


def _category_attribute(regions: list[_Region]) -> str | None:
    """Return the attribute that names the categories: a usual name, or the one that most regions have."""
    counts = Counter(key for region in regions for key, value in region.attributes.items() if _text(value))
    usual = [key for key in counts if key.lower() in _USUAL]
    if usual:
        return min(usual, key=lambda key: _USUAL.index(key.lower()))
    return counts.most_common(1)[0][0] if counts else None


def _text(value: Any) -> str:
    """Return the text of an attribute; of checkboxes ``{"cat": true}`` the first that is set."""
    if isinstance(value, dict):
        value = next((key for key, is_set in value.items() if is_set), "")
    return value.strip() if isinstance(value, str) else ""


def _add(dataset: Dataset, image: ImageFile, region: _Region, attribute: str | None, source: Source) -> None:
    name = _text(region.attributes.get(attribute)) if attribute else source.category
    if not name:
        raise UserError(f"no category in the attribute {attribute!r}")
    points = np.clip(np.reshape(_polygon(region.shape), (-1, 2)), 0, (image.width, image.height))
    if (np.ptp(points, axis=0) <= 0).any():
        raise UserError("outside of its image or without area")
    low, high = points.min(axis=0), points.max(axis=0)
    category = dataset.add_category(name)
    segmentation = [[float(value) for value in points.ravel()]]
    box = [float(value) for value in (*low, *(high - low))]
    dataset.annotations.append(
        Annotation(image.id, category, segmentation, box, id=len(dataset.annotations) + 1, where=region.where)
    )


def _polygon(shape: dict[str, Any]) -> list[float]:
    kind = str(shape.get("name"))
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
            raise UserError("a polygon without as many x as y")
        return [value + 0.5 for value in shapes.polygon([list(pair) for pair in zip(xs, ys, strict=True)])]
    if kind not in _KEYS:
        raise UserError(f"a shape of type {kind!r:.30}, which has no area")
    values = shapes.numbers([shape.get(key) for key in _KEYS[kind]], f"values of a {kind}")
    if kind == "rect":
        return shapes.rectangle(*values)
    angle = shape.get("theta", 0)
    degrees = math.degrees(shapes.numbers([angle], "an angle")[0])
    return shapes.ellipse(*values, *([values[2]] if kind == "circle" else [degrees]))
