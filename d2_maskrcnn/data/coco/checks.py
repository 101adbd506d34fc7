"""Looks at the datasets before anything starts: minutes or hours later the same mistakes cost more and say less.

Everything wrong is an error for data of your own. Detectron2's built-in COCO sets are known to hold a few boxes and
outlines that cannot be used; of these a warning tells, and training leaves them out (Detectron2's mapper drops empty
boxes, its COCO reader drops outlines that are no polygons).
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from d2_maskrcnn.data.coco.boxes import CocoTable, check_boxes, check_ids, check_not_empty
from d2_maskrcnn.data.coco.images import check_images
from d2_maskrcnn.data.coco.masks import check_segmentations
from d2_maskrcnn.data.coco.reader import read_coco_json
from d2_maskrcnn.data.coco.report import Problem, summarise
from d2_maskrcnn.data.coco.schema import check_structure
from d2_maskrcnn.data.own_data import is_built_in
from d2_maskrcnn.errors import UserError, did_you_mean
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

_SHOWN_NAMES = 8


@dataclass(frozen=True)
class CocoSummary:
    """What a checked COCO JSON file holds.

    Attributes:
        categories: their names by ascending id, which is the order of the model's classes.
        images: how many it lists.
        objects: its annotations that are no crowd.
        crowds: those that are.
    """

    categories: tuple[str, ...]
    images: int
    objects: int
    crowds: int


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Checks what ``DATASETS`` names, as far as it is COCO JSON, against itself, the images and the config.

    One process of each machine looks and all of them raise what it found.

    Args:
        cfg: with its datasets registered (see :func:`d2_maskrcnn.data.register_own_data`).
        train: check ``DATASETS.TRAIN`` too; False when nothing is trained.

    Raises:
        UserError: the first file that cannot be used, in one line.
    """
    message = None
    if comm.get_local_rank() == 0:
        try:
            _check_datasets(cfg, train)
        except UserError as error:
            message = str(error)
    found = next((text for text in comm.all_gather(message) if text is not None), None)
    if found is not None:
        raise UserError(found)


def _check_datasets(cfg: CfgNode, train: bool) -> None:
    train_names = list(cfg.DATASETS.TRAIN) if train else []
    if train and not train_names:
        raise UserError(
            "DATASETS.TRAIN is empty: name a dataset, or your own with D2_MASKRCNN.DATA.TRAIN_JSON and .TRAIN_IMAGES"
        )
    if not train and not cfg.DATASETS.TEST:
        raise UserError(
            "DATASETS.TEST is empty, so there is nothing to evaluate: name a dataset, or your own with "
            "D2_MASKRCNN.DATA.VAL_JSON and .VAL_IMAGES"
        )
    categories: dict[str, tuple[str, ...]] = {}
    for name in dict.fromkeys([*train_names, *cfg.DATASETS.TEST]):
        checked = _check_dataset(cfg, name, train=name in train_names, evaluate=name in cfg.DATASETS.TEST)
        if checked is not None:
            categories[name] = checked
    _check_same_categories(categories)


def _check_dataset(cfg: CfgNode, name: str, train: bool, evaluate: bool) -> tuple[str, ...] | None:
    """Checks one registered dataset; returns its categories, or None where they are not known."""
    if name not in DatasetCatalog.list():
        raise UserError(_unknown_dataset(name, "TRAIN" if train else "TEST"))
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if metadata.get("evaluator_type") != "coco" or not json_file:
        names = metadata.get("thing_classes")
        _check_class_count(cfg, f"dataset {name}", names)
        return tuple(names) if names else None
    polygons_only = train and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon"
    summary = check_coco_json(
        PathManager.get_local_path(json_file),
        PathManager.get_local_path(metadata.get("image_root") or "."),
        masks=cfg.MODEL.MASK_ON,
        train=train,
        # a built-in test set comes without annotations: its detections are written for COCO's server
        evaluate=evaluate and not (is_built_in(name) and "_test" in name),
        polygons_only=polygons_only,
        lenient=is_built_in(name),
    )
    _check_class_count(cfg, json_file, summary.categories)
    return summary.categories


def check_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    masks: bool = True,
    train: bool = True,
    evaluate: bool = True,
    polygons_only: bool = False,
    lenient: bool = False,
) -> CocoSummary:
    """Checks one COCO JSON file and that its images are there; 118,000 take a few seconds beside the reading.

    Args:
        json_file: the file.
        image_root: the folder that its ``file_name`` s start from.
        masks: whether outlines are needed, or boxes alone.
        train: whether it is to be trained on.
        evaluate: whether COCO's measure is to be computed on it (which needs ``area`` and ``iscrowd``).
        polygons_only: whether an RLE of a single object is an error (``INPUT.MASK_FORMAT`` is ``polygon``).
        lenient: whether unusable boxes and outlines are told of by a warning instead of an error.

    Returns:
        What it holds.

    Raises:
        UserError: it cannot be used; one line with the first few problems, each with ids and what was expected.
    """
    data = read_coco_json(json_file, annotations_required=train or evaluate)
    _raise_fatal(json_file, list(check_structure(data, evaluate)))
    table = CocoTable(data)
    problems = [*check_not_empty(table, train, train or evaluate), *check_ids(table, evaluate)]
    values = list(check_boxes(table))
    if masks:
        values += check_segmentations(table, polygons_only)
    _raise_fatal(json_file, problems + [each for each in values if not lenient or each.structural])
    _warn(json_file, problems + values, lenient)
    images = list(check_images(table, image_root))
    _raise_fatal(json_file, images)
    ordered = sorted(table.categories, key=lambda category: category["id"])
    crowds = int(table.is_crowd.sum())
    names = tuple(category["name"] for category in ordered)
    return CocoSummary(names, len(table.images), len(table.annotations) - crowds, crowds)


def _raise_fatal(json_file: str | os.PathLike[str], problems: list[Problem]) -> None:
    fatal = [each for each in problems if each.fatal]
    if fatal:
        raise UserError(summarise(os.fspath(json_file), fatal))


def _warn(json_file: str | os.PathLike[str], problems: list[Problem], lenient: bool) -> None:
    if problems:
        left_out = "; training leaves the unusable ones out" if lenient and any(each.fatal for each in problems) else ""
        logger.warning("%s%s", summarise(os.fspath(json_file), problems), left_out)


def _check_class_count(cfg: CfgNode, where: str, names: Sequence[str] | None) -> None:
    if names and len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        raise UserError(
            f"{where} has {len(names)} categories ({shown}) but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: pass MODEL.ROI_HEADS.NUM_CLASSES {len(names)}"
        )


def _check_same_categories(categories: dict[str, tuple[str, ...]]) -> None:
    """All datasets of a run must have the same categories in the same order: the model knows them by their place."""
    if not categories:
        return
    first, expected = next(iter(categories.items()))
    for name, actual in categories.items():
        if actual == expected:
            continue
        place = next(i for i, pair in enumerate(zip(actual, expected, strict=True)) if pair[0] != pair[1])
        raise UserError(
            f"the categories of {_origin(name)} and {_origin(first)} differ: number {place + 1} by id is "
            f"{actual[place]!r} there and {expected[place]!r} here; expected the same 'categories' in both files"
        )


def _origin(name: str) -> str:
    return str(MetadataCatalog.get(name).get("json_file", name))


def _unknown_dataset(name: str, key: str) -> str:
    own = "TRAIN_JSON" if key == "TRAIN" else "VAL_JSON"
    return (
        f"DATASETS.{key} names {name!r}, which is not registered; for data of your own set "
        f"D2_MASKRCNN.DATA.{own} instead.{did_you_mean(name, DatasetCatalog.list())}"
    )
