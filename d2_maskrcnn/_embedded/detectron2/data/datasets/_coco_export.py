"""Write any registered dataset as a COCO annotation file, so that it can be evaluated as COCO is."""

from __future__ import annotations

import datetime
import itertools
import json
import logging
import os
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode, PolygonMasks

__all__ = ["convert_to_coco_dict", "convert_to_coco_json"]

logger = logging.getLogger(__name__)


def _compress(segmentation: Any, height: int, width: int) -> Any:
    """Convert polygons to lists of numbers, run-length encodings and masks to encodings whose counts are text."""
    if isinstance(segmentation, list):
        return [np.asarray(polygon, dtype=np.float64).reshape(-1).tolist() for polygon in segmentation]
    if isinstance(segmentation, dict):
        rle = dict(segmentation)
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, height, width)
    elif isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        rle = mask_util.encode(np.asfortranarray(segmentation, dtype=np.uint8))
    else:
        raise ValueError(
            "a segmentation must be a list of polygons, a COCO run-length encoding or a 2D mask array, got "
            f"{type(segmentation).__name__}."
        )
    if isinstance(rle["counts"], bytes):
        rle["counts"] = rle["counts"].decode("ascii")
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}


def _area(segmentation: Any, box: list[float]) -> float:
    """Return the area in pixels of the polygons, of the encoded mask or, without a segmentation, of the XYWH box."""
    if segmentation is None:
        return float(box[2] * box[3])  # of rotated boxes as well
    if isinstance(segmentation, dict):
        return float(mask_util.area(segmentation))
    return float(PolygonMasks([segmentation]).area()[0])


def _convert_annotation(anno: dict[str, Any], record: dict[str, Any], to_dataset_id: dict[int, int]) -> dict[str, Any]:
    """Return a COCO annotation without its ids."""
    box, mode = [float(value) for value in anno["bbox"]], BoxMode(anno["bbox_mode"])
    if mode != BoxMode.XYWHA_ABS:  # rotated boxes are written as they are
        box = [float(value) for value in BoxMode.convert(box, mode, BoxMode.XYWH_ABS)]
    segmentation = anno.get("segmentation")
    if segmentation is not None:
        segmentation = _compress(segmentation, record["height"], record["width"])
    result: dict[str, Any] = {
        "bbox": [round(value, 3) for value in box],
        "area": _area(segmentation, box),
        "iscrowd": int(anno.get("iscrowd", 0)),
        "category_id": int(to_dataset_id.get(anno["category_id"], anno["category_id"])),
    }
    if segmentation is not None:
        result["segmentation"] = segmentation
    return result


def convert_to_coco_dict(dataset_name: str) -> dict[str, Any]:
    """Convert a registered dataset to the content of a COCO annotation file.

    Args:
        dataset_name: its records need ``height``, ``width`` and ``file_name``; without ``image_id``, their position is
            used. Categories get the original ids of the dataset if its metadata have
            ``thing_dataset_id_to_contiguous_id``.

    Raises:
        KeyError: the dataset is not registered.
        AttributeError: its metadata have no ``thing_classes``.
        ValueError: a segmentation is of an unknown kind.
    """
    records = DatasetCatalog.get(dataset_name)
    meta = MetadataCatalog.get(dataset_name)
    id_map = meta.get("thing_dataset_id_to_contiguous_id") or {}
    to_dataset_id = {contiguous: original for original, contiguous in id_map.items()}
    images, annotations = [], []
    annotation_ids = itertools.count(1)  # not 0, which means "no match" in COCO's evaluation
    for position, record in enumerate(records):
        image_id = record.get("image_id", position)
        image = {"id": image_id, "width": int(record["width"]), "height": int(record["height"])}
        images.append({**image, "file_name": str(record["file_name"])})
        for anno in record.get("annotations", []):
            ids = {"id": next(annotation_ids), "image_id": image_id}
            annotations.append({**ids, **_convert_annotation(anno, record, to_dataset_id)})
    categories = [
        {"id": to_dataset_id.get(index, index), "name": name} for index, name in enumerate(meta.thing_classes)
    ]
    info = {"date_created": str(datetime.datetime.now()), "description": f"Made from the dataset {dataset_name}."}
    logger.info("Converted %d images with %d annotations to COCO's format.", len(images), len(annotations))
    return {"info": info, "licenses": None, "images": images, "annotations": annotations, "categories": categories}


def convert_to_coco_json(dataset_name: str, output_file: str, allow_cached: bool = True) -> None:
    """Write :func:`convert_to_coco_dict` to a file, completely or not at all.

    Processes that write the same file at the same time wait for each other.

    Args:
        dataset_name: a registered dataset.
        output_file: local path of the JSON file.
        allow_cached: whether an existing file is kept.
    """
    output_file = os.fspath(output_file)
    os.makedirs(os.path.dirname(output_file) or ".", exist_ok=True)
    with file_lock(output_file):
        if allow_cached and os.path.exists(output_file):
            logger.warning(
                "Using the existing file %s; delete it if dataset %s has changed.", output_file, dataset_name
            )
            return
        logger.info("Converting dataset %s to COCO's format ...", dataset_name)
        temporary = f"{output_file}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(convert_to_coco_dict(dataset_name), file)
        os.replace(temporary, output_file)
