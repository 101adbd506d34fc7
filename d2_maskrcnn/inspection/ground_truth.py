"""What the annotations of an image say, in the image's own frame, and where to find them."""

import functools
import hashlib
import logging
from collections.abc import Sequence
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

Record = dict[str, Any]


@dataclass
class Truth:
    """G annotated objects of one image.

    boxes: (G, 4) float32 XYXY in pixels of the image. classes: (G,) int64, counted from 0. masks: (G, H, W) bool.
    crowd: (G,) bool, regions with many objects that are neither missed nor wrongly found.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def truth_of(record: Record) -> Truth | None:
    """The annotations of a record in Detectron2's standard format, or None where it has none at all."""
    if "annotations" not in record:
        return None
    annotations = record["annotations"]
    size = (record["height"], record["width"])
    boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = [decode_segmentation(a.get("segmentation"), *size) for a in annotations]
    return Truth(
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        np.asarray([a["category_id"] for a in annotations], dtype=np.int64),
        np.stack(masks) if masks else np.zeros((0, *size), dtype=bool),
        np.asarray([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
    )


def records_for(paths: Sequence[str | Path], cfg: CfgNode, annotations: str = "") -> list[Record]:
    """A record for each image, with its annotations where they are found.

    Args:
        paths: image files.
        cfg: the datasets that it names (``DATASETS``) are searched where ``annotations`` is empty.
        annotations: a COCO JSON file that lists the images by their file names.

    Raises:
        UserError: an image is missing or broken or has another size than its annotation, or the JSON is no COCO JSON.
    """
    known = _known_records(cfg, annotations, {str(Path(path).resolve()) for path in paths})
    found = []
    for path in map(Path, paths):
        record = known.get(str(path.resolve())) or (known.get(path.name) if annotations else None)
        width, height = image_size(path)
        if record is None:
            where = f" in {annotations}" if annotations else ""
            logger.warning("%s: no annotation found%s; what needs one is left out", path, where)
        elif (record["width"], record["height"]) != (width, height):
            expected = (record["width"], record["height"])
            raise UserError(
                f"--input: {size_mismatch(str(path), (width, height), expected)}: the annotation is another image's"
            )
        found.append({**(record or {}), "file_name": str(path), "height": height, "width": width})
    return found


def _known_records(cfg: CfgNode, annotations: str, wanted: set[str]) -> dict[str, Record]:
    """Annotated records by resolved path and, from a file that was named, by file name too."""
    if annotations:
        if not Path(annotations).is_file():
            raise UserError(f"--annotations {annotations}: there is no such file; expected a COCO JSON file")
        _check_coco(annotations)
        name = _dataset_of(annotations)
        records = load_coco_json(annotations, "", name)  # the name makes categories count from 0
        check_coco_classes(cfg, annotations, MetadataCatalog.get(name).thing_classes)
        return {Path(record["file_name"]).name: record for record in records}
    known: dict[str, Record] = {}
    names = {Path(path).name for path in wanted}
    for name in dict.fromkeys((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)):
        if wanted <= set(known):
            break  # a training set can take a minute to read
        for record in dataset_records(name):
            if Path(record["file_name"]).name in names:  # resolving asks the file system: only for likely ones
                known.setdefault(str(Path(record["file_name"]).resolve()), record)
    return known


def _check_coco(annotations: str) -> None:
    """Raises: UserError: no COCO JSON, or one with entries that lack what every reader needs."""
    problems = [each for each in check_structure(read_coco_json(annotations), evaluate=False) if each.fatal]
    if problems:
        raise UserError(f"--annotations {summarise(annotations, problems)}")


def _dataset_of(annotations: str) -> str:
    return f"inspection_{hashlib.sha256(str(Path(annotations).resolve()).encode()).hexdigest()[:12]}"


def class_names_of(cfg: CfgNode, annotations: str = "") -> list[str]:
    """Names of the classes: of the annotation file that was read, else of the first dataset that knows them."""
    names = [_dataset_of(annotations)] if annotations else []
    for name in (*names, *cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        found = MetadataCatalog.get(name).get("thing_classes")
        if found and len(found) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return list(found)
    return []


def check_coco_classes(cfg: CfgNode, annotations: str, names: Sequence[str]) -> None:
    """Raises: UserError: an annotation file has another number of categories than the model."""
    if len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"--annotations {annotations}: {len(names)} categories, but the model has MODEL.ROI_HEADS.NUM_CLASSES "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: name the file whose categories the model was trained on"
        )


def dataset_records(name: str) -> list[Record]:
    """The records of a registered dataset, or none where its files are not on this machine."""
    if name not in DatasetCatalog.list():
        return []
    try:
        return _load(name)
    except (FileNotFoundError, AssertionError) as error:
        logger.info("The dataset %s is not on this machine (%s)", name, error)
        return []


@functools.lru_cache(maxsize=2)
def _load(name: str) -> list[Record]:
    return DatasetCatalog.get(name)
