"""Read "CVAT for images 1.1" XML: polygons, boxes, ellipses and masks.

Shapes of the same label and ``group_id`` are one object. The attribute ``is_crowd`` of a shape marks a crowd, as in
CVAT's own COCO export. Points and polylines have no area and are dropped.
"""

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile, Segmentation, merge
from d2_maskrcnn.data.formats.image_references import Reference, add_images, safe_name
from d2_maskrcnn.data.formats.recognition import Source
from d2_maskrcnn.data.formats.xml_files import read_xml
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import Window, encode_rle

_SHAPES = ("polygon", "box", "ellipse", "mask", "polyline", "points", "cuboid", "skeleton")
CROWD = "is_crowd"


def read(source: Source) -> Dataset:
    """Read CVAT's XML files.

    Raises:
        UserError: one of them is not XML, or contains a document type definition.
    """
    parts = [_read_file(path, source.images) for path in source.files]
    return parts[0] if len(parts) == 1 else merge(str(source.path), parts)


def _read_file(path: Path, images: Path | None) -> Dataset:
    root = read_xml(path)
    dataset = Dataset(str(path), "cvat")
    for label in root.iterfind(".//labels/label/name"):
        if label.text and label.text.strip():
            dataset.add_category(label.text.strip())
    elements = root.findall("image")
    added = add_images(dataset, [_reference(path, element, images) for element in elements], [])
    for index, element in enumerate(elements):
        found = [shape for shape in element if shape.tag in _SHAPES]
        where = f"{path}: image {element.get('name')}"
        if index in added:
            _add_shapes(dataset, added[index], found, where)
        else:
            for number in range(len(found)):
                dataset.drop("annotation", f"{where}: shape {number}", "its image was dropped")
    if root.find("track") is not None:
        dataset.drop("file", str(path), 'tracks of a video; export the task as "CVAT for images 1.1"')
    return dataset


def _reference(path: Path, element: Element, images: Path | None) -> Reference:
    subset = element.get("subset") or ""
    split = "" if subset.lower() == "default" else subset.lower()
    near = [path.parent / "images" / subset, path.parent / "images", path.parent, path.parent.parent]
    return Reference(
        element.get("name") or "",
        f"{path}: image {element.get('name')}",
        split if safe_name(split) == split else "",
        declared_size=(_integer(element.get("width")), _integer(element.get("height"))),
        folders=[images] if images else near,
    )


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


def _add_shapes(dataset: Dataset, image: ImageFile, found: list[Element], where: str) -> None:
    groups: dict[tuple[str, object], list[tuple[int, Element]]] = {}
    for number, shape in enumerate(found):
        group = shape.get("group_id") or "0"
        key = (shape.get("label") or "", ("shape", number) if group == "0" else group)
        groups.setdefault(key, []).append((number, shape))
    for (label, _), members in groups.items():
        parts: list[Segmentation] = []
        for number, shape in members:
            with dataset.dropping(f"{where}: shape {number}"):
                parts.append(_segmentation(shape, image))
        first = f"{where}: shape {members[0][0]}"
        if parts and not label:
            dataset.drop("annotation", first, "a shape without a label")
        elif parts:
            crowd = any((each.text or "").strip().lower() == "true" for each in _crowd_attributes(members[0][1]))
            category, number = dataset.add_category(label), len(dataset.annotations) + 1
            segmentation = shapes.union(parts, image)
            dataset.annotations.append(
                Annotation(image.id, category, segmentation, iscrowd=int(crowd), id=number, where=first)
            )


def _crowd_attributes(shape: Element) -> list[Element]:
    return [each for each in shape.iterfind("attribute") if each.get("name") == CROWD]


def _values(shape: Element, *keys: str) -> list[float]:
    return shapes.numbers([shape.get(key) for key in keys], f"values of a {shape.tag}")


def _segmentation(shape: Element, image: ImageFile) -> Segmentation:
    turn = _values(shape, "rotation")[0] if shape.get("rotation") else 0.0
    if shape.tag == "polygon":
        return [shapes.polygon([point.split(",") for point in (shape.get("points") or "").split(";") if point])]
    if shape.tag == "box":
        x0, y0, x1, y1 = _values(shape, "xtl", "ytl", "xbr", "ybr")
        return [shapes.turned_rectangle(x0, y0, x1 - x0, y1 - y0, turn)]
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = _values(shape, "cx", "cy", "rx", "ry")
        return [shapes.ellipse(x, y, radius_x, radius_y, turn)]
    if shape.tag == "mask":
        return _mask(shape, image)
    raise UserError(f"a shape of type '{shape.tag}', which has no area")


def _mask(shape: Element, image: ImageFile) -> Segmentation:
    """Decode CVAT's RLE: runs of 0 and 1, row by row, within the mask's box."""
    x, y, width, height = (int(value) for value in _values(shape, "left", "top", "width", "height"))
    runs = np.array(shapes.numbers((shape.get("rle") or "").split(","), "runs of a mask"), dtype=np.int64)
    if width < 1 or height < 1 or (runs < 0).any() or runs.sum() != width * height:
        raise UserError("a mask whose runs do not add up to its width x height")
    if not (x >= 0 and y >= 0 and x + width <= image.width and y + height <= image.height):
        raise UserError("a mask outside of its image")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return encode_rle(mask, Window(x, y, x + width, y + height), (image.height, image.width))
