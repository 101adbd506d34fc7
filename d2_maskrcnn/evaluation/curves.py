"""Precision-recall curves of an evaluation."""

from typing import Any

import numpy as np


def precision_recall(evaluation: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return COCO's interpolated precision at an IoU of 0.5, for objects of all sizes.

    Args:
        evaluation: an accumulated ``COCOeval`` (of pycocotools or compatible) whose lowest IoU threshold is 0.5; None
            for no detections.

    Returns:
        Recalls (101,) in [0, 1], and for each class with ground truth its precisions (101,) in [0, 1], whose mean is
        its AP50.
    """
    if evaluation is None:
        return np.linspace(0.0, 1.0, 101), {}
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recalls, classes), -1 without ground truth
    names = [category["name"] for category in evaluation.cocoGt.loadCats(evaluation.params.catIds)]
    return evaluation.params.recThrs, {
        name: values for name, values in zip(names, precision.T, strict=True) if (values >= 0).all()
    }
