"""Repair single entries: one function per kind of repair, and the table of the flaws that each one repairs."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from pycocotools import mask as mask_util

from d2_maskrcnn.data.flaws.images import similar_names
from d2_maskrcnn.data.flaws.masks import segmentation_fault
from d2_maskrcnn.data.flaws.schema import is_box, is_number
from d2_maskrcnn.data.formats.dataset import bounding_box
from d2_maskrcnn.data.formats.image_references import is_inside
from d2_maskrcnn.data.image_reading import image_size
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import segmentation_to_rle
from d2_maskrcnn.structures.rle import rle_pixel_counts

if TYPE_CHECKING:
    from d2_maskrcnn.data.flaws.repair import Work

Repair = Callable[["Work", str, int], str]  # returns what was done, {} standing for the list's name; "" for nothing
SizedRepair = Callable[["Work", int, dict[str, Any], tuple[int, int]], str]

_SIZED = "{} given the size of their file"


def _drop(action: str) -> Repair:
    def repair(work: "Work", entries: str, position: int) -> str:
        work.dropped[entries].add(position)
        return action

    return repair


_drop_unusable = _drop("unusable {} dropped")


def _sized(repair: SizedRepair) -> Repair:
    """Call a repair with an annotation and the (width, height) of its image; do nothing where that is not known."""

    def repair_if_sized(work: "Work", entries: str, position: int) -> str:
        annotation = work.entry(entries, position)
        size = work.size_of(annotation)
        return "" if size is None else repair(work, position, annotation, size)

    return repair_if_sized


def _renumber(work: "Work", entries: str, position: int) -> str:
    work.entry(entries, position)["id"] = work.new_id(entries)
    return "{} given new ids"


def _set_no_crowd(work: "Work", entries: str, position: int) -> str:
    work.entry(entries, position)["iscrowd"] = 0
    return "{} given iscrowd 0"


def _delete_ignore(work: "Work", entries: str, position: int) -> str:
    del work.entry(entries, position)["ignore"]
    return "key 'ignore' of {} deleted"


def _name_category(work: "Work", entries: str, position: int) -> str:
    category = work.entry(entries, position)
    category["name"] = f"category {category.get('id')}"
    return "{} named by their id"


def _drop_second(name: str) -> Repair:
    """Return a repair of a repeated id: drop the entry if it has the same name as the first one."""

    def repair(work: "Work", entries: str, position: int) -> str:
        entry, first = _with_first(work, entries, position, "id")
        return _drop("repeated {} dropped")(work, entries, position) if first.get(name) == entry.get(name) else ""

    return repair


def _merge(name: str, reference: str) -> Repair:
    """Return a repair of a repeated name: give the entry's annotations the first one's id, and drop the entry."""

    def repair(work: "Work", entries: str, position: int) -> str:
        entry, first = _with_first(work, entries, position, name)
        for annotation in work.content.entries_with("annotations", reference, entry["id"]):
            annotation[reference] = first["id"]
        return _drop("{} of the same name merged")(work, entries, position)

    return repair


def _with_first(work: "Work", entries: str, position: int, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an entry, and the first entry with the same value of ``key``."""
    entry = work.entry(entries, position)
    return entry, work.content.entries_with(entries, key, entry[key])[0]


def _read_size(work: "Work", entries: str, position: int) -> str:
    """Set width and height from the image file."""
    image, root = work.entry(entries, position), work.content.image_root
    name = image.get("file_name")
    if root is None or not isinstance(name, str) or not is_inside(root, name):
        return ""
    try:
        image["width"], image["height"] = image_size(root / name)
    except UserError:
        return ""
    return _SIZED


def _correct_size(work: "Work", entries: str, position: int) -> str:
    """Set width and height to those of the file, if all annotations of the image are inside of it."""
    image, size = work.entry(entries, position), work.actual_size(position)
    if size is None:
        return ""
    for each in work.content.entries_with("annotations", "image_id", image["id"]):
        box: Any = each.get("bbox")
        if isinstance(each.get("segmentation"), dict) or not is_box(box):
            return ""
        if not (box[0] >= -1 and box[1] >= -1 and box[0] + box[2] <= size[0] + 1 and box[1] + box[3] <= size[1] + 1):
            return ""
    image["width"], image["height"] = size
    return _SIZED


def _find_file(work: "Work", entries: str, position: int) -> str:
    """Correct the name of a missing image if its file exists under a similar one, or drop the image."""
    image, root = work.entry(entries, position), work.content.image_root
    for name, _ in similar_names(image["file_name"]):
        if root is not None and is_inside(root, name) and (root / name).is_file():
            image["file_name"] = name
            return "{} renamed as their file"
    return _drop("missing {} dropped")(work, entries, position)


def _to_rle(work: "Work", annotation: dict[str, Any]) -> dict[str, Any] | None:
    """Return the mask of an annotation as compressed RLE, or None if it cannot be decoded."""
    size, segmentation = work.size_of(annotation), annotation.get("segmentation")
    if size is None or segmentation_fault(segmentation, size) is not None:
        return None
    if isinstance(segmentation, list):
        decodable = all(map(_is_polygon, segmentation))
    else:
        counts = segmentation["counts"]  # type: ignore[index]  # segmentation_fault has checked it
        decodable = isinstance(counts, list) or int(rle_pixel_counts([counts])[0]) == size[0] * size[1]
    try:
        return segmentation_to_rle(segmentation, size[1], size[0]) if decodable else None
    except UserError:  # a polygon far outside of the image
        return None


def _measure(work: "Work", entries: str, position: int) -> str:
    """Compute box and area of an annotation from its segmentation."""
    annotation = work.entry(entries, position)
    rle = _to_rle(work, annotation)
    if rle is None:
        return ""
    height, width = rle["size"]
    box, area = bounding_box(annotation["segmentation"], height, width), float(mask_util.area(rle))
    if min(box[2:]) <= 0:
        return ""
    annotation["bbox"], annotation["area"] = box, area or box[2] * box[3]
    return "boxes and areas computed from the masks"


def _measure_or_drop(work: "Work", entries: str, position: int) -> str:
    return _measure(work, entries, position) or _drop_unusable(work, entries, position)


def _set_area(work: "Work", entries: str, position: int) -> str:
    """Compute the area of an annotation from its segmentation, or without one from its box."""
    annotation = work.entry(entries, position)
    rle, box = _to_rle(work, annotation), annotation.get("bbox")
    if rle is not None:
        area = float(mask_util.area(rle))
    elif is_box(box) and not annotation.get("segmentation"):
        area = float(np.prod(box[2:]))  # type: ignore[index]  # is_box has checked it
    else:
        return ""
    if not area > 0 or annotation.get("area") == area:
        return ""
    annotation["area"] = area
    return "areas computed"


def _from_corners(work: "Work", entries: str, position: int) -> str:
    annotation = work.entry(entries, position)
    x0, y0, x1, y1 = annotation["bbox"]
    annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    return "boxes converted from [x0, y0, x1, y1]"


@_sized
def _box_to_pixels(work: "Work", position: int, annotation: dict[str, Any], size: tuple[int, int]) -> str:
    annotation["bbox"] = _to_pixels(annotation["bbox"], size)
    _set_area(work, "annotations", position)
    return "boxes converted from fractions to pixels"


def _to_pixels(fractions: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Scale alternating fractions of the width and the height of an image of ``size`` (width, height)."""
    return [value * size[index % 2] for index, value in enumerate(fractions)]


@_sized
def _clip_box(work: "Work", position: int, annotation: dict[str, Any], size: tuple[int, int]) -> str:
    x, y, width, height = annotation["bbox"]
    x0, y0 = max(x, 0), max(y, 0)
    annotation["bbox"] = [x0, y0, min(x + width, size[0]) - x0, min(y + height, size[1]) - y0]
    _set_area(work, "annotations", position)
    return "boxes clipped at the border"


@_sized
def _polygons_to_pixels(work: "Work", position: int, annotation: dict[str, Any], size: tuple[int, int]) -> str:
    annotation["segmentation"] = [_to_pixels(polygon, size) for polygon in annotation["segmentation"]]
    _measure(work, "annotations", position)
    return "polygons converted from fractions to pixels"


def _keep_good_polygons(work: "Work", entries: str, position: int) -> str:
    """Remove polygons that cannot be used; drop an annotation without any other."""
    annotation = work.entry(entries, position)
    segmentation = annotation.get("segmentation")
    polygons = segmentation if isinstance(segmentation, list) else []
    good = [each for each in polygons if _is_polygon(each)]
    if not good or len(good) == len(polygons):
        return _drop_unusable(work, entries, position)
    annotation["segmentation"] = good
    return _measure(work, entries, position) and "{} reduced to their usable polygons"


def _is_polygon(value: Any) -> bool:
    if not isinstance(value, list) or len(value) < 6 or len(value) % 2 or not all(map(is_number, value)):
        return False
    points = np.array(value, dtype=np.float64).reshape(-1, 2)
    return bool(np.isfinite(points).all() and (np.ptp(points, axis=0) > 0).all())


@_sized
def _clip_polygons(work: "Work", position: int, annotation: dict[str, Any], size: tuple[int, int]) -> str:
    """Clip polygons at the border of the image; drop an annotation of which nothing is left."""
    clipped = []
    for polygon in annotation["segmentation"]:
        shape = shapely.make_valid(shapely.Polygon(np.reshape(polygon, (-1, 2))))
        parts = shapely.get_parts(shapely.clip_by_rect(shape, 0, 0, *size))
        rings = [part.exterior for part in parts if part.geom_type == "Polygon" and part.area > 0]
        clipped += [np.asarray(ring.coords)[:-1].round(2).reshape(-1).tolist() for ring in rings]
    annotation["segmentation"] = [each for each in clipped if _is_polygon(each)]
    measured = _measure(work, "annotations", position)
    return "polygons clipped at the border" if measured else _drop_unusable(work, "annotations", position)


def _drop_if_missing(work: "Work", entries: str, position: int) -> str:
    """Drop an image outside of the image folder whose file does not exist; the copy names others by absolute paths."""
    image, root = work.entry(entries, position), work.content.image_root or Path()
    return "" if os.path.isfile(root / image["file_name"]) else _drop("missing {} dropped")(work, entries, position)


# Repair -> kinds of flaws. Kinds that are not here need a decision.
_KINDS: dict[Repair, str] = {
    _drop_unusable: (
        "not-an-object file-name-missing file-name-invalid image-id-missing image-id-invalid category-id-missing "
        "category-id-invalid polygon-far-beyond polygon-outside rle-size rle-runs rle-empty"
    ),
    _drop("{} of unknown images dropped"): "image-unknown",
    _drop("{} of unknown categories dropped"): "category-unknown",
    _renumber: "id-missing id-invalid annotation-id-repeated annotation-id-zero",
    _drop_second("file_name"): "image-id-repeated",
    _drop_second("name"): "category-id-repeated",
    _merge("file_name", "image_id"): "image-repeated",
    _merge("name", "category_id"): "category-name-repeated",
    _name_category: "name-missing name-invalid category-unnamed",
    _read_size: "width-missing width-invalid height-missing height-invalid",
    _correct_size: "image-size",
    _find_file: "image-missing",
    _drop_if_missing: "image-outside-folder",
    _drop("unreadable {} dropped"): "image-unreadable image-truncated",
    _drop("{} of too many pixels dropped"): "image-too-large",
    _measure_or_drop: "bbox-missing bbox-invalid box-not-finite box-no-area box-outside box-far-beyond",
    _measure: "box-differs",
    _from_corners: "box-corners",
    _box_to_pixels: "box-normalized",
    _clip_box: "box-beyond",
    _set_area: "area-missing area-invalid area-impossible area-doubtful",
    _set_no_crowd: "iscrowd-missing iscrowd-invalid",
    _delete_ignore: "ignore-invalid",
    _drop("{} without a mask dropped"): "segmentation-missing",
    _keep_good_polygons: "segmentation-invalid polygon-points polygon-not-finite polygon-no-area",
    _polygons_to_pixels: "polygon-normalized",
    _clip_polygons: "polygon-beyond",
    _drop("repeated {} dropped"): "annotation-repeated",
}
REPAIRS = {kind: repair for repair, kinds in _KINDS.items() for kind in kinds.split()}
