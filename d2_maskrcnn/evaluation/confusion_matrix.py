"""Confusion matrix of a detector: confused classes, false negatives and false positives."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.errors import escape_formula
from d2_maskrcnn.structures.masks import coco_iou, segmentation_to_rle
from d2_maskrcnn.weights.atomic import atomic_write_text

Json = Mapping[str, Any]


def confusion_matrix(
    ground_truth: Json, detections: Sequence[Json], iou_threshold: float = 0.5, score_threshold: float = 0.5
) -> np.ndarray:
    """Count the objects of each class by the class that they were detected as.

    In each image, detections are matched in descending order of their scores, as in COCO's metrics but without regard
    to classes: each is matched to the unmatched object with the highest IoU, if that is at least ``iou_threshold``.
    Unmatched detections inside crowd regions are not counted.

    Args:
        ground_truth: content of a COCO JSON.
        detections: in COCO's results format. IoU is of masks if all objects of an image have one, else of boxes.
        iou_threshold: in [0, 1].
        score_threshold: detections with a lower score are not counted; in [0, 1].

    Returns:
        (K + 1, K + 1) int64, classes in ascending order of their category ids; rows are ground truth, columns are
        detections. True positives are on the diagonal and wrong classes beside it; the last column counts objects
        without detection (false negatives), the last row detections without object (false positives).
    """
    index = {id_: i for i, id_ in enumerate(sorted(category["id"] for category in ground_truth["categories"]))}
    matrix = np.zeros((len(index) + 1, len(index) + 1), dtype=np.int64)
    objects = _by_image(ground_truth.get("annotations", []))
    kept = _by_image([detection for detection in detections if detection["score"] >= score_threshold])
    for image in ground_truth["images"]:
        ranked = sorted(kept[image["id"]], key=lambda detection: -detection["score"])
        size = (image["height"], image["width"])
        for row, column in _match(objects[image["id"]], ranked, size, iou_threshold):
            matrix[index.get(row, -1), index.get(column, -1)] += 1
    return matrix


def _by_image(items: Sequence[Json]) -> dict[Any, list[Json]]:
    grouped: dict[Any, list[Json]] = defaultdict(list)
    for item in items:
        grouped[item["image_id"]].append(item)
    return grouped


def _match(
    objects: list[Json], detections: list[Json], size: tuple[int, int], iou_threshold: float
) -> list[tuple[Any, Any]]:
    """Return pairs (category id of the object, category id of the detection), with None for no object or detection."""
    crowd = np.array([bool(each.get("iscrowd", 0)) for each in objects], dtype=bool)
    ious = _ious(detections, objects, crowd, size)  # (D, G)
    unmatched = ~crowd
    pairs = []
    for detection, row in zip(detections, ious, strict=True):
        candidates = np.where(unmatched, row, -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= iou_threshold:
            unmatched[best] = False
            pairs.append((objects[best]["category_id"], detection["category_id"]))
        elif not (row[crowd] >= iou_threshold).any():
            pairs.append((None, detection["category_id"]))
    return pairs + [(objects[i]["category_id"], None) for i in np.flatnonzero(unmatched)]


def _ious(detections: list[Json], objects: list[Json], crowd: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (D, G) IoUs; for crowd regions the intersection over the detection's area, as in COCO's metrics."""
    if all("segmentation" in each for each in detections) and all(each.get("segmentation") for each in objects):
        return coco_iou(_rles(detections, size), _rles(objects, size), crowd)
    return coco_iou(_boxes(detections), _boxes(objects), crowd)


def _rles(items: list[Json], size: tuple[int, int]) -> list[Any]:
    return [segmentation_to_rle(item["segmentation"], *size) for item in items]


def _boxes(items: list[Json]) -> np.ndarray:
    """Return (N, 4) XYXY."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def write_confusion_csv(path: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Write a confusion matrix as CSV.

    Args:
        path: of the file; its folder is created if needed.
        matrix: (K + 1, K + 1), see :func:`confusion_matrix`.
        names: of the K classes. Control characters are escaped, and names that spreadsheets would take for a formula
            are marked as text by a leading apostrophe.
    """
    labels = [escape_formula(name) for name in (*names, "(background)")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["ground truth / predicted", *labels])
    writer.writerows([[label, *row] for label, row in zip(labels, matrix.tolist(), strict=True)])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text.getvalue())
