"""Find the annotations of images, and convert them to boxes and masks in the image's own frame."""

import functools
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.coco.report import summarise
from d2_maskrcnn.data.coco.schema import check_structure
from d2_maskrcnn.data.image_reading import image_size, size_mismatch
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import decode_segmentation
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

logger = logging.getLogger(__name__)

Record = dict[str, Any]  # a dataset dict in Detectron2's standard format


@dataclass
class GroundTruth:
    """G annotated objects of one image.

    Attributes:
        boxes: (G, 4) float32 XYXY in pixels of the image file.
        classes: (G,) int64, counted from 0.
        masks: (G, H, W) bool; empty for objects without a segmentation.
        crowd: (G,) bool, regions of many objects, which count neither as false negatives nor make false positives.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def ground_truth_of(record: Record) -> GroundTruth | None:
    """Convert the annotations of a record; None if the record has no key ``annotations``."""
    if "annotations" not in record:
        return None
    annotations = record["annotations"]
    size = (record["height"], record["width"])
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = [decode_segmentation(a.get("segmentation"), *size) for a in annotations]
    return GroundTruth(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        np.asarray([a["category_id"] for a in annotations], dtype=np.int64),
        np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        np.asarray([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def records_for(paths: Sequence[str | Path], cfg: CfgNode, annotations: str = "") -> list[Record]:
    """Make a record of each image file, with its annotations if they are known.

    Args:
        paths: image files.
        cfg: config whose datasets (``DATASETS.TEST``, then ``DATASETS.TRAIN``) are searched for the images.
        annotations: a COCO JSON file to search instead. An image matches if its path ends with the ``file_name`` of the
            JSON's entry; the longest match is used.

    Raises:
        UserError: an image is missing, unreadable or not of the size that its annotation gives; the JSON is not a valid
            COCO file, or has another number of categories than the model.
    """
    files = [Path(path) for path in paths]
    known = _from_json(files, cfg, annotations) if annotations else _from_datasets(files, cfg)
    records = []
    for path in files:
        record = known.get(path.resolve())
        width, height = image_size(path)
        if record is None:
            source = annotations or "the config's datasets"
            logger.warning("%s is not in %s: the report has no ground truth for it", path, source)
        elif (record["width"], record["height"]) != (width, height):
            mismatch = size_mismatch(str(path), (width, height), (record["width"], record["height"]))
            raise UserError(f"{mismatch}: name the image that was annotated")
        records.append({**(record or {}), "file_name": str(path), "height": height, "width": width})
    return records


def _from_json(files: Iterable[Path], cfg: CfgNode, annotations: str) -> dict[Path, Record]:
    """Find images in a COCO JSON file, by resolved path."""
    if not Path(annotations).is_file():
        raise UserError(f"{annotations}: no such file; expected a COCO JSON file")
    problems = [each for each in check_structure(read_coco_json(annotations), evaluate=False) if each.fatal]
    if problems:
        raise UserError(summarise(annotations, problems))
    dataset = _dataset_of(annotations)
    records = load_coco_json(annotations, "", dataset)  # with a dataset's name, category ids are mapped to 0, 1, ...
    _check_classes(cfg, annotations, MetadataCatalog.get(dataset).thing_classes)
    by_parts = {Path(record["file_name"]).parts: record for record in records}
    known = {}
    for path in (file.resolve() for file in files):
        suffixes = (path.parts[start:] for start in range(len(path.parts)))  # the longest first
        record = next((by_parts[parts] for parts in suffixes if parts in by_parts), None)
        if record is not None:
            known[path] = record
    return known


def _from_datasets(files: Iterable[Path], cfg: CfgNode) -> dict[Path, Record]:
    """Find images in the config's datasets, by resolved path."""
    missing = {path.resolve() for path in files}
    names = {path.name for path in missing}
    known: dict[Path, Record] = {}
    for dataset in dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        if not missing:
            break  # reading a training set can take a minute
        for record in dataset_records(dataset):
            path = Path(record["file_name"])
            if path.name in names and (resolved := path.resolve()) in missing:  # resolving reads the file system
                known[resolved] = record
                missing.discard(resolved)
    return known


def _check_classes(cfg: CfgNode, annotations: str, names: Sequence[str]) -> None:
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(names) != expected:
        raise UserError(
            f"{annotations}: {len(names)} categories, but MODEL.ROI_HEADS.NUM_CLASSES is {expected}: name a file with "
            "the categories that the model was trained on"
        )


def _dataset_of(annotations: str) -> str:
    """Return the name under which the metadata of an annotation file is registered."""
    return f"inspection_{hashlib.sha256(str(Path(annotations).resolve()).encode()).hexdigest()[:12]}"


def class_names_of(cfg: CfgNode, annotations: str = "") -> list[str]:
    """Return the class names of an annotation file that was read, or of the first of the config's datasets with names.

    Returns:
        ``MODEL.ROI_HEADS.NUM_CLASSES`` names, or an empty list.
    """
    datasets = [_dataset_of(annotations)] if annotations else []
    for dataset in (*datasets, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(dataset).get("thing_classes")
        if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return list(names)
    return []


def dataset_records(name: str) -> list[Record]:
    """Return the records of a registered dataset; an empty list if its files are not on this machine."""
    if name not in DatasetCatalog.list():
        return []
    try:
        return _load(name)
    except (FileNotFoundError, AssertionError) as error:  # loaders of other projects assert that their files exist
        logger.info("The dataset %s is not on this machine (%s)", name, error)
        return []


@functools.lru_cache(maxsize=2)
def _load(name: str) -> list[Record]:
    return DatasetCatalog.get(name)
