"""Convert polygons drawn with the VGG Image Annotator (VIA), such as the balloon data, to COCO format.

    python datasets/prepare_balloon.py --input balloon --output datasets/balloon

reads ``{train,val}/via_region_data.json`` and the images beside it, and writes
``annotations/instances_{train,val}.json`` and the images ``{train,val}/*``. The balloon data itself (61 + 13
photographs) is one zip file:
https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip

VIA 1 (regions in a dict), VIA 2 (in a list) and VIA 2 project files are read; regions are polygons or rectangles.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from d2_maskrcnn.data.image_reading import read_image
from d2_maskrcnn.errors import UserError

SPLITS = ("train", "val")
VIA_NAME = "via_region_data.json"
MADE_BY = "made by prepare_balloon.py"


def read_via(path: Path) -> list[dict[str, Any]]:
    """Read the image entries (``filename``, ``regions``, ...) of a VIA JSON file, in the file's order.

    Raises:
        UserError: the file does not exist, is not JSON, or not VIA's.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected VIA's JSON there, in a folder train and a folder val")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); export the annotations from VIA again") from error
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        raise UserError(f"{path}: this is COCO JSON already; train with it as it is (see datasets/README.md)")
    if isinstance(data, dict) and "_via_img_metadata" in data:
        data = data["_via_img_metadata"]
    entries = list(data.values()) if isinstance(data, dict) else None
    if not entries or not all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries):
        raise UserError(f"{path}: not VIA's JSON; expected entries with 'filename' and 'regions'")
    return entries


def region_corners(region: dict[str, Any], where: str) -> np.ndarray:
    """Return the corners (N, 2), x and y in pixels, of a VIA region. Pixel i covers [i, i + 1]; VIA gives indices.

    Raises:
        UserError: it is neither a polygon nor a rectangle, or its coordinates are incomplete.
    """
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    shape = shape if isinstance(shape, dict) else {}
    kind = shape.get("name")
    if kind not in ("polygon", "polyline", "rect"):
        raise UserError(f"{where}: its shape is {kind!r}; expected 'polygon' or 'rect'; draw it as one of these")
    try:
        if kind == "rect":
            x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
            return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        corners = np.array([shape["all_points_x"], shape["all_points_y"]], dtype=np.float64).T
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: bad coordinates ({error!r}); expected as many numbers for x as for y") from error
    if len(corners) < 3:
        raise UserError(f"{where}: a polygon of {len(corners)} points; expected at least 3")
    return corners + 0.5  # a pixel's center


def region_category(region: dict[str, Any], attribute: str | None, default: str, where: str) -> str:
    """Return the category of a region: the value of ``attribute``, or ``default`` if that is None."""
    if attribute is None:
        return default
    value = (region.get("region_attributes") or {}).get(attribute)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: its attribute {attribute!r} is {value!r}; expected the name of a category")
    return value.strip()


def annotate(corners: np.ndarray, width: int, height: int, where: str) -> dict[str, Any]:
    """Make the COCO annotation of a polygon (N, 2), clipped to a ``width`` x ``height`` image.

    Raises:
        UserError: it lies outside of the image or has no area.
    """
    if (corners.min(axis=0) >= (width, height)).any() or (corners.max(axis=0) <= 0).any():
        raise UserError(f"{where}: it lies outside of the image, which is {width}x{height} (upright)")
    corners = np.clip(corners, 0, (width, height))
    polygon = [float(value) for value in corners.ravel()]
    area = float(mask_util.area(mask_util.merge(mask_util.frPyObjects([polygon], height, width))))
    low, high = corners.min(axis=0), corners.max(axis=0)
    if area == 0 or not (high > low).all():
        raise UserError(f"{where}: it covers no pixel; delete it in VIA or draw it again")
    box = [float(value) for value in (*low, *(high - low))]
    return {"segmentation": [polygon], "bbox": box, "area": area, "iscrowd": 0}


def convert_split(folder: Path, attribute: str | None, category: str) -> tuple[dict[str, Any], list[str]]:
    """Convert one folder.

    Returns:
        The split in COCO format, with category names instead of ids, and the names of its images.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    via = folder / VIA_NAME
    for image_id, entry in enumerate(tqdm(read_via(via), desc=folder.name, leave=False, disable=None), start=1):
        name = str(entry["filename"])
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{via}: the image {name!r} lies outside of {folder}; expected it in that folder")
        height, width, _ = read_image(folder / name).shape  # decoded, since the header does not show truncation
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        regions = entry["regions"]
        for key, region in regions.items() if isinstance(regions, dict) else enumerate(regions):
            where = f"{via}: {name}, region {key}"
            annotation = annotate(region_corners(region, where), width, height, where)
            annotation["category"] = region_category(region, attribute, category, where)
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    names = [image["file_name"] for image in images]
    if len(set(names)) != len(names):
        raise UserError(f"{via}: the image {max(names, key=names.count)} occurs more than once; expected once")
    return {"info": {"description": MADE_BY}, "images": images, "annotations": annotations}, names


def number_categories(splits: list[dict[str, Any]]) -> None:
    """Replace category names by ids from 1 on, in alphabetical order, the same in all splits; in place."""
    names = sorted({annotation["category"] for split in splits for annotation in split["annotations"]})
    ids = {name: number for number, name in enumerate(names, start=1)}
    for split in splits:
        split["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
        for annotation in split["annotations"]:
            annotation["category_id"] = ids[annotation.pop("category")]


def check_may_write(path: Path, overwrite: bool) -> None:
    """Refuse to replace a JSON file that this script did not write."""
    if overwrite or not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        if MADE_BY not in file.read(200):
            raise UserError(f"{path}: exists and was not made by this script; name another --output or add --overwrite")


def convert_dataset(
    source: Path, output: Path, attribute: str | None = None, category: str = "balloon", overwrite: bool = False
) -> list[dict[str, Any]]:
    """Convert ``source/{train,val}`` to COCO format under ``output``; all input is checked before anything is written.

    Args:
        source: folder with ``{train,val}/via_region_data.json`` and the images.
        output: folder to write; if it is ``source`` itself, only the JSON is written.
        attribute: the region attribute with the category's name; None: all regions are of one category.
        category: the name of that one category.
        overwrite: replace JSON files that something else wrote.

    Returns:
        The two splits as written.

    Raises:
        UserError: bad input, see the message.
    """
    if not source.is_dir():
        raise UserError(f"--input {source}: no such folder; expected one with train/{VIA_NAME} and val/{VIA_NAME}")
    targets = [output / "annotations" / f"instances_{split}.json" for split in SPLITS]
    for target in targets:
        check_may_write(target, overwrite)
    converted = [convert_split(source / split, attribute, category) for split in SPLITS]
    splits = [data for data, _ in converted]
    number_categories(splits)
    for split, (_, names) in zip(SPLITS, converted, strict=True):
        copy_images(source / split, output / split, names)
    for target, data in zip(targets, splits, strict=True):  # last: the images exist before the JSON
        write_whole(target, json.dumps(data))
    return splits


def copy_images(source: Path, target: Path, names: list[str]) -> None:
    """Copy the named images into ``target``, except those that it has already."""
    for name in names:
        copy = target / name
        if copy.exists() and copy.stat().st_size == (source / name).stat().st_size:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, copy)


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Convert VIA polygons (the balloon data) to COCO format.")
    parser.add_argument("--input", type=Path, required=True, help=f"folder with train/{VIA_NAME} and val/{VIA_NAME}")
    parser.add_argument("--output", type=Path, default=Path("datasets/balloon"), help="default: %(default)s")
    parser.add_argument("--category", default="balloon", help="the one category's name (default: %(default)s)")
    parser.add_argument("--category-attribute", help="take the categories from this region attribute instead")
    parser.add_argument("--overwrite", action="store_true", help="replace JSON files that something else wrote")
    options = parser.parse_args(arguments)
    try:
        splits = convert_dataset(
            options.input, options.output, options.category_attribute, options.category, options.overwrite
        )
    except (UserError, OSError) as error:
        print(f"prepare_balloon.py: {error}", file=sys.stderr)
        return 1
    for name, data in zip(SPLITS, splits, strict=True):
        print(f"{options.output}: {name}: {len(data['images'])} images, {len(data['annotations'])} objects")
    return 0


if __name__ == "__main__":
    sys.exit(main())
