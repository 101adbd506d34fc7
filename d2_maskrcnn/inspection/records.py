"""Find the annotations of images in a COCO JSON file or in the config's datasets."""

import functools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from d2_maskrcnn.data.coco.records import Record, load_records
from d2_maskrcnn.data.image_reading import image_size, size_mismatch
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)


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
    records, categories = _load_json(annotations)
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(categories) != expected:
        raise UserError(
            f"{annotations}: {len(categories)} categories, but MODEL.ROI_HEADS.NUM_CLASSES is {expected}: name a file "
            "with the categories that the model was trained on"
        )
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
        for record in available_records(dataset):
            path = Path(record["file_name"])
            if path.name in names and (resolved := path.resolve()) in missing:  # resolving reads the file system
                known[resolved] = record
                missing.discard(resolved)
    return known


def _load_json(annotations: str) -> tuple[list[Record], dict[int, str]]:
    """Load a COCO JSON file; the content of the last file is cached until the file changes."""
    return _load_version(annotations, Path(annotations).stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _load_version(annotations: str, modified: int) -> tuple[list[Record], dict[int, str]]:
    return load_records(annotations, None)


def class_names_of(cfg: CfgNode, annotations: str = "") -> list[str]:
    """Return the class names of an annotation file, or of the first of the config's datasets that has names.

    Returns:
        ``MODEL.ROI_HEADS.NUM_CLASSES`` names, or an empty list.
    """
    candidates = [list(_load_json(annotations)[1].values())] if annotations else []
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if not MetadataCatalog.get(dataset).get("thing_classes"):
            available_records(dataset)  # some datasets know their names once they are loaded
        candidates.append(list(MetadataCatalog.get(dataset).get("thing_classes") or []))
    return next((names for names in candidates if len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES), [])


def available_records(name: str) -> list[Record]:
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
