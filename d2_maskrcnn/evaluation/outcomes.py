"""Outcomes of the detections of one image: TP, wrong class, FP or ignored; and FN, the objects without a detection."""

import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.masks import coco_iou

MATCH_IOU = 0.5  # as in PASCAL VOC and COCO's AP50


def match(
    classes: np.ndarray,
    gt_classes: np.ndarray,
    overlaps: np.ndarray,
    crowd: np.ndarray | None = None,
    iou: float = MATCH_IOU,
) -> tuple[list[tuple[str, int | None]], list[int]]:
    """Match detections to ground truth objects.

    As in COCO's evaluation, each detection in turn takes the free object of its class with the highest IoU. Detections
    that are left then take free objects of other classes.

    Args:
        classes: (N,) of the detections, highest score first.
        gt_classes: (G,) of the objects.
        overlaps: (N, G) IoU; for crowd regions the share of the detection.
        crowd: (G,) bool, crowd regions; None for none.
        iou: minimum for a match.

    Returns:
        For each detection its outcome, ``TP``, ``wrong class``, ``FP`` or ``ignored`` (in a crowd region of its class),
        and the index of the object that it matches; and the objects without a match, which are false negatives.
    """
    crowd = np.zeros(len(gt_classes), bool) if crowd is None else crowd
    same = classes[:, None] == gt_classes[None]  # (N, G)
    free = ~crowd
    outcomes: list[tuple[str, int | None]] = [("FP", None)] * len(classes)
    for outcome, allowed in (("TP", same), ("wrong class", ~same)):
        for index in range(len(classes)):
            candidates = np.where(allowed[index] & free, overlaps[index], 0)
            if outcomes[index][1] is None and candidates.max(initial=0) >= iou:
                best = int(candidates.argmax())
                outcomes[index], free[best] = (outcome, best), False
    in_crowd = (same & crowd & (overlaps >= iou)).any(axis=1)
    outcomes = [
        ("ignored", None) if gt is None and ignored else (outcome, gt)
        for (outcome, gt), ignored in zip(outcomes, in_crowd, strict=True)
    ]
    return outcomes, np.flatnonzero(free).tolist()


def compare(ground_truth: Detections, predictions: Detections) -> tuple[list[tuple[str, int | None]], list[int]]:
    """Match predictions, highest score first, to the objects of the same image; see :func:`match`.

    The IoU is that of masks, or of boxes for objects without a mask and if there are no predicted masks.
    """
    overlaps = coco_iou(predictions.boxes, ground_truth.boxes)
    if predictions.masks is not None and ground_truth.masks is not None:
        of_masks = coco_iou(predictions.masks.rles(), ground_truth.masks.rles())
        overlaps = np.where(ground_truth.masks.areas() > 0, of_masks, overlaps)
    return match(predictions.classes, ground_truth.classes, overlaps)
