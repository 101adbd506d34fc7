"""Compare an exported file with the model that it was made from, on images without annotations."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.results import Results
from d2_maskrcnn.structures.masks import coco_iou

MIN_SCORE = 0.5  # detections below it are not compared
MIN_IOU = 0.5  # of the boxes of two detections of the same object


@dataclass
class Agreement:
    """How well two models agree.

    Attributes:
        images: number of images. detections: of the reference.
        matched: share of the detections of both models that have a partner of the same class, in [0, 1].
        mask_iou: mean IoU of the masks (without masks: boxes) of partners, in [0, 1]; NaN if there are none.
        score_difference: mean absolute difference of the scores of partners; NaN if there are none.
        seconds, reference_seconds: median time per image.
    """

    images: int
    detections: int
    matched: float
    mask_iou: float
    score_difference: float
    seconds: float
    reference_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.images} images: {self.matched:.1%} of {self.detections} detections with a score of at least "
            f"{MIN_SCORE} agree, mean mask IoU {self.mask_iou:.3f}, mean score difference {self.score_difference:.4f}; "
            f"{self.seconds * 1000:.0f} ms per image, {self.seconds / self.reference_seconds:.2f} of float32"
        )


def compare(actual: Predictor, reference: Predictor, images: Sequence[np.ndarray]) -> Agreement:
    """Run both models on each image, alternating.

    Args:
        images: one or more, (H, W, 3) uint8 RGB.
    """
    times: dict[int, list[float]] = {0: [], 1: []}
    pairs, total, count = [], 0, 0
    for image in images:
        results = []
        for index, predictor in enumerate((actual, reference)):
            start = time.perf_counter()
            result = predictor(image)
            times[index].append(time.perf_counter() - start)
            results.append(result[result.scores >= MIN_SCORE])
        pairs += _partners(*results)
        total, count = total + len(results[0]) + len(results[1]), count + len(results[1])
    ious, differences = zip(*pairs, strict=True) if pairs else ([np.nan], [np.nan])
    return Agreement(
        len(images),
        count,
        2 * len(pairs) / total if total else 1.0,
        float(np.mean(ious)),
        float(np.mean(differences)),
        statistics.median(times[0]),
        statistics.median(times[1]),
    )


def _partners(actual: Results, expected: Results) -> list[tuple[float, float]]:
    """Match detections of a class by the IoU of their boxes, best scores first.

    Returns:
        The IoU of the masks (without masks: boxes) and the score difference of each pair.
    """
    if not len(actual) or not len(expected):
        return []
    box_iou = coco_iou(actual.boxes, expected.boxes)
    if actual.detections.masks is None or expected.detections.masks is None:
        mask_iou = box_iou.copy()
    else:
        mask_iou = coco_iou(actual.detections.masks.rles(), expected.detections.masks.rles())
    box_iou[actual.class_ids[:, None] != expected.class_ids[None]] = 0
    pairs = []
    for index in np.argsort(-actual.scores):
        best = int(box_iou[index].argmax())
        if box_iou[index, best] >= MIN_IOU:
            difference = abs(float(actual.scores[index] - expected.scores[best]))
            pairs.append((float(mask_iou[index, best]), difference))
            box_iou[:, best] = 0
    return pairs
