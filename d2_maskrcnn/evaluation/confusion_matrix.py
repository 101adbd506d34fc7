"""Which class is taken for which: the confusion matrix of a list of detections."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from d2_maskrcnn.structures.masks import coco_iou, segmentation_to_rle

Json = Mapping[str, Any]


def confusion_matrix(
    truth: Json, detections: Sequence[Json], iou_threshold: float = 0.5, score_threshold: float = 0.5
) -> np.ndarray:
    """Counts annotations by their class and the class of the detection on them.

    In each image detections go from the surest to the least sure, as in COCO's measure but without regard to
    classes: each takes the free annotation that it overlaps most, if the overlap (IoU of masks, or of boxes where a
    detection has no mask) is at least ``iou_threshold``. Of the rest, those that lie in crowd regions are left out.

    Args:
        truth: the content of a COCO JSON.
        detections: in COCO's results format.
        iou_threshold, score_threshold: in [0, 1]; detections with a lower score are left out.

    Returns:
        (K + 1, K + 1) int64, classes in the order of their ids; rows are annotations, columns detections. The last
        column counts annotations that nothing found, the last row detections on nothing.
    """
    index = {id_: i for i, id_ in enumerate(sorted(category["id"] for category in truth["categories"]))}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    matrix = np.zeros((len(index) + 1, len(index) + 1), dtype=np.int64)
    annotated, found = _by_image(truth.get("annotations", [])), _by_image(detections)
    for image_id, size in sizes.items():
        sure = [item for item in found[image_id] if item["score"] >= score_threshold]
        sure.sort(key=lambda item: -item["score"])
        _count_image(matrix, annotated[image_id], sure, size, index, iou_threshold)
    return matrix


def _by_image(items: Sequence[Json]) -> dict[Any, list[Json]]:
    grouped: dict[Any, list[Json]] = defaultdict(list)
    for item in items:
        grouped[item["image_id"]].append(item)
    return grouped


def _count_image(
    matrix: np.ndarray,
    annotations: list[Json],
    detections: list[Json],
    size: tuple[int, int],
    index: Mapping[int, int],
    iou_threshold: float,
) -> None:
    nothing = len(index)
    crowd = np.array([bool(item.get("iscrowd", 0)) for item in annotations], dtype=bool)
    overlaps = _overlaps(detections, annotations, crowd, size)  # (D, G)
    free = ~crowd
    for item, overlap in zip(detections, overlaps, strict=True):
        candidates = np.where(free, overlap, -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= iou_threshold:
            free[best] = False
            matrix[index[annotations[best]["category_id"]], index[item["category_id"]]] += 1
        elif not (overlap[crowd] >= iou_threshold).any():
            matrix[nothing, index[item["category_id"]]] += 1
    for missed in np.flatnonzero(free):
        matrix[index[annotations[int(missed)]["category_id"]], nothing] += 1


def _overlaps(detections: list[Json], annotations: list[Json], crowd: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(D, G) intersection over union; over the detection's own area for crowd regions, as COCO has it."""
    if all("segmentation" in item for item in detections) and all(item.get("segmentation") for item in annotations):
        masks = [[segmentation_to_rle(i["segmentation"], *size) for i in items] for items in (detections, annotations)]
        return coco_iou(masks[0], masks[1], crowd)
    return coco_iou(_boxes(detections), _boxes(annotations), crowd)


def _boxes(items: list[Json]) -> np.ndarray:
    """Return (N, 4) XYXY."""
    boxes = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
