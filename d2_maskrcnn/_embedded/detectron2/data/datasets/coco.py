"""Read COCO annotation files into records."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from detectron2._names import lookup
from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets._coco_export import convert_to_coco_dict, convert_to_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = ["convert_to_coco_dict", "convert_to_coco_json", "load_coco_json", "register_coco_instances"]

logger = logging.getLogger(__name__)

_KEPT_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")
_SLOW_SECONDS = 1
# COCO's 2014 minival file lists some annotations twice.
_DUPLICATES_KNOWN = ("instances_minival2014.json", "instances_valminusminival2014.json")


def _read_json(json_file: str) -> dict[str, Any]:
    try:
        with PathManager.open(json_file, "r", encoding="utf-8") as file:
            data = json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the COCO annotation file {json_file!r} does not exist (working directory: {os.getcwd()!r}). Built-in "
            "datasets are expected below the folder in the environment variable DETECTRON2_DATASETS (default: "
            "'datasets'); set it before Python starts."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{json_file!r} is not a JSON file, or is truncated: {error}.") from error
    return data


def _check_layout(data: Any, json_file: str) -> None:
    """Check the parts of a COCO file that all other code relies on."""
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise ValueError(
            f"{json_file!r} is not in COCO's instance format: expected an object with the lists 'images', "
            "'annotations' and 'categories'."
        )
    needed = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
    needed["annotations"] = ("id", "image_id", "category_id", "bbox")
    for part, keys in needed.items():
        for position, entry in enumerate(data.get(part, [])):
            missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ValueError(f"{json_file!r}: {part}[{position}] lacks {', '.join(map(repr, missing))}.")


def _check_ids(data: dict[str, Any], json_file: str) -> None:
    """Check that ids are unique, and warn of annotations without an image."""
    parts = ["images", "categories"] + (["annotations"] if os.path.basename(json_file) not in _DUPLICATES_KNOWN else [])
    for part in parts:
        counts = Counter(entry["id"] for entry in data.get(part, []))
        repeated = [number for number, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"{json_file!r}: ids in {part!r} must be unique, but {repeated[:5]} occur more than once.")
    known = {entry["id"] for entry in data["images"]}
    stray = sum(anno["image_id"] not in known for anno in data.get("annotations", []))
    if stray:
        logger.warning("%s: %d annotations belong to no image of the file; they are left out.", json_file, stray)


def _index(data: dict[str, Any]) -> COCO:
    api = COCO()
    api.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        api.createIndex()
    return api


def _read_categories(api: COCO, dataset_name: str) -> dict[int, int]:
    """Set the class names and the id map in the dataset's metadata; return the map (file's id -> 0, 1, ...)."""
    categories = api.loadCats(sorted(api.getCatIds()))
    if not categories:
        raise ValueError(f"dataset {dataset_name!r}: the annotation file has no categories.")
    id_map = {category["id"]: index for index, category in enumerate(categories)}
    meta = MetadataCatalog.get(dataset_name)
    meta.thing_classes = [category["name"] for category in categories]
    meta.thing_dataset_id_to_contiguous_id = id_map
    return id_map


def _read_segmentation(segmentation: Any) -> Any:
    """Return a compressed run-length encoding, or the polygons with at least three points; None if there are none."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) % 2 == 0 and len(polygon) >= 6] or None


def _read_annotation(
    anno: dict[str, Any], id_map: dict[int, int] | None, keys: Sequence[str], json_file: str
) -> dict[str, Any] | None:
    """Return one annotation of a record; None if it has only invalid polygons.

    Raises:
        ValueError: the box is not four numbers, or the category is unknown.
    """
    where = f"{json_file!r}: annotation {anno['id']}"
    if anno.get("ignore", 0):
        raise ValueError(f"{where} has the key 'ignore', which is not in COCO's format: use 'iscrowd', or remove it.")
    result = {key: anno[key] for key in keys if key in anno}
    if not isinstance(anno["bbox"], list) or len(anno["bbox"]) != 4:
        raise ValueError(f"{where}: expected a bbox of four numbers [x, y, width, height], got {anno['bbox']!r}.")
    result["bbox_mode"] = BoxMode.XYWH_ABS
    if anno.get("segmentation"):
        result["segmentation"] = _read_segmentation(anno["segmentation"])
        if result["segmentation"] is None:
            return None
    if id_map is not None:
        if anno["category_id"] not in id_map:
            raise ValueError(f"{where} has the unknown category id {anno['category_id']}; known are {sorted(id_map)}.")
        result["category_id"] = id_map[anno["category_id"]]
    return result


def load_coco_json(
    json_file: str,
    image_root: str,
    dataset_name: str | None = None,
    extra_annotation_keys: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Read a file in COCO's instance annotation format.

    Args:
        json_file: its path. image_root: folder of the images, to which ``file_name`` entries are relative.
        dataset_name: if given, categories get the contiguous ids 0, 1, ... in the order of their ids, and the metadata
            of this name get ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``; None keeps the file's ids.
        extra_annotation_keys: further keys of the annotations to keep.

    Returns:
        one record per image, in the order of the image ids: ``file_name``, ``height``, ``width``, ``image_id`` and
        ``annotations``. An annotation has ``bbox`` (XYWH in pixels), ``bbox_mode``, ``category_id``, ``iscrowd`` if the
        file has it, and possibly ``segmentation``: polygons [x0, y0, x1, ...] or a compressed run-length encoding.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON or not in COCO's format, or the metadata have other class names.
    """
    started = time.perf_counter()
    data = _read_json(json_file)
    _check_layout(data, json_file)
    _check_ids(data, json_file)
    api = _index(data)
    id_map = _read_categories(api, dataset_name) if dataset_name is not None else None
    keys, records, without_mask = (*_KEPT_KEYS, *(extra_annotation_keys or ())), [], 0
    for image_id in sorted(api.imgs):
        image = api.imgs[image_id]
        # `get`, since an access to a missing key of pycocotools' defaultdict would add it.
        annotations = [_read_annotation(a, id_map, keys, json_file) for a in api.imgToAnns.get(image_id, [])]
        kept = [annotation for annotation in annotations if annotation is not None]
        without_mask += len(annotations) - len(kept)
        record = {"file_name": os.path.join(image_root, image["file_name"]), "image_id": image_id}
        records.append({**record, "height": image["height"], "width": image["width"], "annotations": kept})
    _log_reading(json_file, len(records), without_mask, time.perf_counter() - started)
    return records


def _log_reading(json_file: str, images: int, without_mask: int, seconds: float) -> None:
    if without_mask:
        message = "%s: skipped %d annotations whose segmentation has no polygon of at least three points."
        logger.warning(message, json_file, without_mask)
    level = logging.INFO if seconds > _SLOW_SECONDS else logging.DEBUG
    logger.log(level, "Loaded %d images from %s in %.2f s.", images, json_file, seconds)


def register_coco_instances(name: str, metadata: dict[str, Any], json_file: str, image_root: str) -> None:
    """Register a dataset in COCO's instance annotation format. Files are read when the dataset is used.

    Args:
        name: the name that configs use.
        metadata: further attributes of its metadata; may be empty.
        json_file: its annotation file.
        image_root: folder of the images, to which the file's ``file_name`` entries are relative.

    Raises:
        TypeError: the name or a path is not a string or path.
        ValueError: the name is registered already.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a dataset must be a string, got {name!r}.")
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    DatasetCatalog.register(name, lambda: load_coco_json(json_file, image_root, name))
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco", **metadata)


__getattr__ = lookup(__name__)
