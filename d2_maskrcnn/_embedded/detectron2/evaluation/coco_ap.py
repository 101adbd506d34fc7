"""Average precision of a list of detections by COCO's rules, computed by faster-coco-eval."""

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO, COCOeval_faster

logger = logging.getLogger(__name__)

Detections = Sequence[Mapping[str, Any]]

# The keys of a detection that COCO's tools read. Without the box, the area of a mask decides its size class.
_KEYS = {
    "bbox": ("image_id", "category_id", "bbox", "score"),
    "segm": ("image_id", "category_id", "segmentation", "score"),
}


def load_ground_truth(source: str | os.PathLike[str] | dict[str, Any]) -> COCO:
    """Read a COCO JSON for evaluation.

    COCO's tools mark the match of a detection by the annotation's id, 0 meaning none, so that ids which are not
    positive or are repeated would silently falsify the result: then all ids are renumbered in memory. ``iscrowd`` and
    ``area`` may be missing.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if isinstance(source, dict):
        content = copy.deepcopy(source)
    elif Path(source).is_file():
        content = COCO.load_json(os.fspath(source))
    else:
        raise FileNotFoundError(f"the COCO JSON {os.fspath(source)!r} does not exist")
    annotations = content.get("annotations", [])
    ids = {annotation.get("id", 0) for annotation in annotations}
    if len(ids) < len(annotations) or any(number <= 0 for number in ids):
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
    """Evaluate detections; the results are ``stats`` and ``eval`` of the returned object.

    Args:
        ground_truth: from :func:`load_ground_truth`.
        detections: in COCO's results format; not modified.
        iou_type: ``"bbox"`` or ``"segm"``.
        img_ids: the images to evaluate; None for all.
        max_dets_per_image: number of highest-scoring detections per image and class; None for 100.

    Raises:
        ValueError: ``iou_type`` is neither, or the image of a detection is not in the ground truth.
    """
    if iou_type not in _KEYS:
        raise ValueError(f"iou_type {iou_type!r}: expected one of {', '.join(_KEYS)}")
    unknown = {detection["image_id"] for detection in detections} - ground_truth.imgs.keys()
    if unknown:
        raise ValueError(
            f"{len(unknown)} images of the detections are not in the ground truth: ids {sorted(unknown)[:5]}"
        )
    if any(number < 0 for number in ground_truth.imgs):  # which the tools cannot store
        ground_truth, detections, img_ids = _number_images(ground_truth, detections, img_ids)
    # Copies, since the tools modify their input.
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


def _number_images(
    ground_truth: COCO, detections: Detections, img_ids: Sequence[int] | None
) -> tuple[COCO, Detections, Sequence[int] | None]:
    """Number the images from 1, in copies of what refers to them."""
    numbers = {old: new for new, old in enumerate(ground_truth.imgs, start=1)}
    content = dict(ground_truth.dataset)
    content["images"] = [{**image, "id": numbers[image["id"]]} for image in content["images"]]
    content["annotations"] = [{**each, "image_id": numbers[each["image_id"]]} for each in content["annotations"]]
    numbered = [{**detection, "image_id": numbers[detection["image_id"]]} for detection in detections]
    return COCO(content), numbered, None if img_ids is None else [numbers[each] for each in img_ids]
