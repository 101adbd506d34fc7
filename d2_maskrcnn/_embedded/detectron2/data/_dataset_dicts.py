"""Read registered datasets into one list of records."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate
from torch.utils.data import ConcatDataset, Dataset

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils.file_io import PathManager

__all__ = [
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
]

logger = logging.getLogger(__name__)
HISTOGRAM_PAIRS = 3  # (category, instances) pairs per line of the table
LONGEST_NAME = 13


def filter_images_with_only_crowd_annotations(dataset_dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records that have an annotation which is not a crowd region."""
    kept = [record for record in dataset_dicts if any(not anno.get("iscrowd", 0) for anno in record["annotations"])]
    removed = len(dataset_dicts) - len(kept)
    logger.info("Removed %d images with no usable annotations. %d images left.", removed, len(kept))
    return kept


def _count_instances(dataset_dicts: list[dict[str, Any]], num_classes: int) -> np.ndarray:
    """Return (num_classes,) numbers of annotations, without crowd regions."""
    annotations = itertools.chain.from_iterable(record["annotations"] for record in dataset_dicts)
    classes = np.array([anno["category_id"] for anno in annotations if not anno.get("iscrowd", 0)], dtype=np.int64)
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        raise ValueError(
            f"category ids of annotations are {classes.min()} to {classes.max()}, but there are {num_classes} class "
            "names: ids must be 0 to the number of classes minus 1."
        )
    return np.bincount(classes, minlength=num_classes)


def print_instances_class_histogram(dataset_dicts: list[dict[str, Any]], class_names: Sequence[str]) -> None:
    """Log a table of the number of instances per class, without crowd regions.

    Args:
        dataset_dicts: records with ``annotations``.
        class_names: names of the categories 0, 1, ...

    Raises:
        ValueError: the category of an annotation has no name.
    """
    counts = _count_instances(dataset_dicts, len(class_names))
    short = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 2] + ".." for name in class_names]
    cells: list[Any] = list(itertools.chain.from_iterable(zip(short, counts.tolist(), strict=True)))
    if len(class_names) > 1:
        cells += [None] * (-len(cells) % (2 * HISTOGRAM_PAIRS)) + ["total", int(counts.sum())]
    width = min(2 * HISTOGRAM_PAIRS, len(cells))
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    table = tabulate(rows, headers=["category", "#instances"] * (width // 2), tablefmt="pipe", numalign="left")
    logger.info("Distribution of instances among all %d categories:\n%s", len(class_names), table)


def _check_image_folder(name: str) -> None:
    folder = MetadataCatalog.get(name).get("image_root")
    if folder and not PathManager.isdir(folder):
        raise FileNotFoundError(
            f"dataset {name!r}: the image folder {folder!r} does not exist. Built-in datasets are expected below the "
            "folder in the environment variable DETECTRON2_DATASETS (default: 'datasets')."
        )


def _load(name: str) -> Any:
    records = DatasetCatalog.get(name)
    if isinstance(records, Dataset):
        return records
    if len(records) == 0:
        raise ValueError(f"dataset {name!r} has no records.")
    _check_image_folder(name)
    return records


def _check_and_describe(names: Sequence[str], records: list[dict[str, Any]]) -> None:
    if not all(MetadataCatalog.get(name).get("thing_classes") for name in names):
        return  # without class names there is nothing to compare or to print
    check_metadata_consistency("thing_classes", names)
    print_instances_class_histogram(records, MetadataCatalog.get(names[0]).thing_classes)


def get_detection_dataset_dicts(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> Any:
    """Read registered datasets and concatenate their records.

    Args:
        names: one name or several.
        filter_empty: whether images without annotations other than crowd regions are removed.
        min_keypoints, proposal_files: must be 0 and empty.
        check_consistency: whether the datasets must have the same classes; the number of instances per class is logged.

    Returns:
        a list of records, or a PyTorch dataset if one is registered under a name.

    Raises:
        KeyError: a name is not registered.
        FileNotFoundError: an annotation file or image folder is missing.
        ValueError: there is no name or no record, or the datasets have different classes.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no dataset name given: set DATASETS.TRAIN or DATASETS.TEST, such as ('coco_2017_train',).")
    if min_keypoints or proposal_files:
        raise ValueError("this engine has neither keypoints (min_keypoints) nor given proposals (proposal_files).")
    loaded = [_load(name) for name in names]
    if any(isinstance(records, Dataset) for records in loaded):
        return loaded[0] if len(loaded) == 1 else ConcatDataset(loaded)
    joined = list(itertools.chain.from_iterable(loaded))
    has_annotations = "annotations" in joined[0]
    if filter_empty and has_annotations:
        joined = filter_images_with_only_crowd_annotations(joined)
    if check_consistency and has_annotations:
        _check_and_describe(names, joined)
    if not joined:
        raise ValueError(f"no image of {', '.join(names)} has an annotation other than crowd regions.")
    return joined
