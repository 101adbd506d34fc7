"""COCO's average precision of a list of detections, by faster-coco-eval."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

logger = logging.getLogger(__name__)

Detections = Sequence[Mapping[str, Any]]

# What COCO's tools read of a detection. Without its box, a mask's size decides whether it is small, medium or large.
_KEYS = {
    "bbox": ("image_id", "category_id", "bbox", "score"),
    "segm": ("image_id", "category_id", "segmentation", "score"),
}


def load_ground_truth(source: str | os.PathLike[str] | dict[str, Any]) -> COCO:
    """Reads a COCO JSON for evaluation.

    COCO's tools mark a detection's match by the annotation's id, with 0 for none, so ids that are 0 or doubled would
    spoil the result silently: then all are renumbered, in memory. ``iscrowd`` and ``area`` may be missing.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(source, dict):
        content = copy.deepcopy(source)
    elif Path(source).is_file():
        content = COCO.load_json(os.fspath(source))
    else:
        raise FileNotFoundError(f"there is no COCO JSON {os.fspath(source)!r} to evaluate against")
    annotations = content.get("annotations", [])
    ids = {annotation.get("id", 0) for annotation in annotations}
    if 0 in ids or len(ids) < len(annotations):
        for index, annotation in enumerate(annotations):
            annotation["id"] = index + 1
    ground_truth = COCO(content)
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = _area(ground_truth, annotation)
    return ground_truth


def _area(ground_truth: COCO, annotation: dict[str, Any]) -> float:
    if annotation.get("segmentation"):
        return float(ground_truth.annToMask(annotation).sum())
    return float(annotation["bbox"][2] * annotation["bbox"][3])


def run_coco_eval(
    ground_truth: COCO,
    detections: Detections,
    iou_type: str,
    img_ids: Sequence[int] | None = None,
    max_dets_per_image: int | None = None,
) -> COCOeval_faster:
    """Evaluates detections; ``stats`` and ``eval`` of what is returned hold the results.

    Args:
        ground_truth: from :func:`load_ground_truth`.
        detections: in COCO's results format; they stay as they are.
        iou_type: ``"bbox"`` or ``"segm"``.
        img_ids: the images that count; None: all.
        max_dets_per_image: the highest-scoring detections of each image and class that count; None: 100.

    Raises:
        ValueError: ``iou_type`` is neither, or a detection is of an image that is not in the ground truth.
    """
    if iou_type not in _KEYS:
        raise ValueError(f"iou_type {iou_type!r}: expected one of {', '.join(_KEYS)}")
    unknown = {detection["image_id"] for detection in detections} - ground_truth.imgs.keys()
    if unknown:
        raise ValueError(
            f"detections of {len(unknown)} images that the ground truth does not have: ids {sorted(unknown)[:5]}"
        )
    # The tools write into what they get, so they get copies.
    results = ground_truth.loadRes([{key: detection[key] for key in _KEYS[iou_type]} for detection in detections])
    lines: list[str] = []
    evaluation = COCOeval_faster(ground_truth, results, iou_type, print_function=lines.append)
    if img_ids is not None:
        evaluation.params.imgIds = list(img_ids)
    if max_dets_per_image is not None:
        limit = max_dets_per_image
        evaluation.params.maxDets = [1, min(10, limit), limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    logger.info("%s:\n%s", iou_type, "\n".join(line for line in lines if "Average" in line))
    return evaluation


def evaluate_coco(
    coco_gt: COCO | str | os.PathLike[str] | dict[str, Any], results: Detections | str | os.PathLike[str], iou_type: str
) -> np.ndarray:
    """COCO's twelve numbers, in COCO's order: six average precisions, then six average recalls.

    Args:
        coco_gt: the ground truth: a COCO JSON, its content, or an index of it.
        results: detections in COCO's results format, or a JSON file of them.
        iou_type: ``"bbox"`` or ``"segm"``.

    Returns:
        (12,) float64 in [0, 1]; -1 where there is no ground truth: AP, AP50, AP75, AP small, medium, large, then AR
        with 1, 10 and 100 detections per image, AR small, medium, large.

    Raises:
        ValueError: see :func:`run_coco_eval`.
        FileNotFoundError: a file is missing.
    """
    ground_truth = coco_gt if isinstance(coco_gt, COCO) else load_ground_truth(coco_gt)
    if isinstance(results, str | os.PathLike):
        results = _read_detections(results)
    return np.asarray(run_coco_eval(ground_truth, results, iou_type).stats[:12], dtype=np.float64)


def _read_detections(path: str | os.PathLike[str]) -> Detections:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no JSON file of detections {os.fspath(path)!r}")
    detections = COCO.load_json(os.fspath(path))
    if not isinstance(detections, list):
        raise ValueError(f"{os.fspath(path)!r} holds a {type(detections).__name__}, not a list of detections")
    return detections
