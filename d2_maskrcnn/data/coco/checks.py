"""Validate datasets before training or evaluation starts.

Every problem is an error in your own data. Detectron2's built-in COCO datasets are known to contain a few boxes and
segmentations that cannot be used. These are a warning only, and training leaves them out: Detectron2's mapper drops
empty boxes, its COCO reader drops polygons of fewer than three points.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from d2_maskrcnn.data.coco.reader import is_plain_utf8, read_coco_json
from d2_maskrcnn.data.flaws.find_flaws import Findings, Purpose, find_flaws
from d2_maskrcnn.data.flaws.flaw import summarize
from d2_maskrcnn.data.flaws.train_and_val import category_names, check_shared_images, first_difference
from d2_maskrcnn.data.own_data import is_built_in, is_own
from d2_maskrcnn.errors import UserError, did_you_mean
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

_SHOWN_NAMES = 8


def check_datasets(cfg: CfgNode, train: bool = True) -> None:
    """Check the datasets of a config: their COCO JSON files, their images, and how they fit each other and the model.

    One process per machine checks; all processes raise its error.

    Args:
        cfg: a config whose datasets are registered (see :func:`d2_maskrcnn.data.register_own_data`).
        train: whether ``DATASETS.TRAIN`` is used as well.

    Raises:
        UserError: the first dataset that cannot be used, in one line.
    """
    message = None
    if comm.get_local_rank() == 0:
        try:
            _check_datasets(cfg, train)
        except UserError as error:
            message = str(error)
    first = next((text for text in comm.all_gather(message) if text is not None), None)
    if first is not None:
        raise UserError(first)


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
    checked = {
        name: _check_dataset(cfg, name, train=name in train_names, evaluate=name in cfg.DATASETS.TEST)
        for name in dict.fromkeys([*train_names, *cfg.DATASETS.TEST])
    }
    _check_same_categories({name: each.names for name, each in checked.items() if each.names})
    for train_name in train_names:
        for name in cfg.DATASETS.TEST:
            _check_shared_images(checked, train_name, name)


@dataclass(frozen=True)
class _Checked:
    """The names of a dataset's categories, if they are known, and its findings, if it is a COCO JSON."""

    names: tuple[str, ...]
    findings: Findings | None = None


def _check_dataset(cfg: CfgNode, name: str, train: bool, evaluate: bool) -> _Checked:
    """Check one registered dataset."""
    if name not in DatasetCatalog.list():
        raise UserError(_unknown_dataset(name, "TRAIN" if train else "TEST"))
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if metadata.get("evaluator_type") != "coco" or not json_file:
        names = metadata.get("thing_classes")
        _check_class_count(cfg, f"dataset {name}", names)
        return _Checked(tuple(names or ()))
    path = PathManager.get_local_path(json_file)
    purpose = Purpose(
        masks=cfg.MODEL.MASK_ON,
        train=train,
        evaluate=evaluate,
        polygons_only=train and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon",
        lenient=is_built_in(name),
    )
    findings = check_coco_json(path, PathManager.get_local_path(metadata.get("image_root") or "."), purpose, cfg)
    if not is_own(name) and not is_plain_utf8(path):
        raise UserError(
            f"{path}: not UTF-8 without byte order mark, which is all that Detectron2's reader of registered datasets "
            "accepts; save it as such, or name it with D2_MASKRCNN.DATA"
        )
    names = category_names(findings.table)
    _check_class_count(cfg, json_file, names)
    return _Checked(names, findings)


def check_coco_json(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    purpose: Purpose | None = None,
    cfg: CfgNode | None = None,
) -> Findings:
    """Check one COCO JSON file and its images; logs a warning about what can be used but looks wrong.

    A file of the size of COCO's training set takes 15 s with polygons and 25 s with RLEs, parsing included.

    Args:
        json_file: the file.
        image_root, purpose, cfg: see :func:`~d2_maskrcnn.data.flaws.find_flaws.find_flaws`.

    Raises:
        UserError: it cannot be used; one line with the first few problems, each with ids and what was expected.
    """
    purpose = purpose or Purpose()
    findings = find_flaws(read_coco_json(json_file, annotations_required=purpose.train), image_root, purpose, cfg)
    errors, warnings = findings.of_severity("error"), findings.of_severity("warning")
    if errors:
        raise UserError(summarize(os.fspath(json_file), errors))
    if warnings:
        logger.warning("%s", summarize(os.fspath(json_file), warnings))
    if purpose.evaluate and not findings.table.annotations:
        logger.warning("%s: no annotations: detections are written, but there is nothing to compare them to", json_file)
    return findings


def _check_class_count(cfg: CfgNode, where: str, names: Sequence[str] | None) -> None:
    if names and len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        raise UserError(
            f"{where} has {len(names)} categories ({shown}) but MODEL.ROI_HEADS.NUM_CLASSES is "
            f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}: set MODEL.ROI_HEADS.NUM_CLASSES to {len(names)}"
        )


def _check_same_categories(categories: dict[str, tuple[str, ...]]) -> None:
    """Check that all datasets have the same categories in the same order, by which the model knows them."""
    if not categories:
        return
    first, expected = next(iter(categories.items()))
    for name, actual in categories.items():
        difference = first_difference(expected, actual)
        if difference is not None:
            place, other, own = difference
            raise UserError(
                f"the categories of {_origin(name)} and {_origin(first)} differ: number {place} by id is {own} in the "
                f"former and {other} in the latter; expected the same 'categories' in both files"
            )


def _check_shared_images(checked: dict[str, _Checked], train: str, test: str) -> None:
    """Warn about images that are trained on and evaluated on, unless both datasets are meant to be the same."""
    first, second = checked[train].findings, checked[test].findings
    if first is not None and second is not None and _origin(train) != _origin(test):
        shared = list(check_shared_images(first, second, _origin(train)))
        if shared:
            logger.warning("%s", summarize(_origin(test), shared))


def _origin(name: str) -> str:
    return str(MetadataCatalog.get(name).get("json_file", name))


def _unknown_dataset(name: str, key: str) -> str:
    own = "TRAIN_JSON" if key == "TRAIN" else "VAL_JSON"
    return (
        f"DATASETS.{key} names {name!r}, which is not registered.{did_you_mean(name, DatasetCatalog.list())} For your "
        f"own data set D2_MASKRCNN.DATA.{own} instead"
    )
