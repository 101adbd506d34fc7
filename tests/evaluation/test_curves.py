import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from d2_maskrcnn.evaluation.curves import precision_recall


def evaluate(objects, detections):
    """Evaluate (category, x) boxes of 10x10 in one image with the categories 3 ("a"), 7 ("b") and 9 ("unused")."""
    categories = [{"id": 9, "name": "unused"}, {"id": 7, "name": "b"}, {"id": 3, "name": "a"}]
    annotations = [
        {"id": i, "image_id": 1, "category_id": category, "bbox": [x, 0, 10, 10], "area": 100, "iscrowd": 0}
        for i, (category, x) in enumerate(objects, start=1)
    ]
    ground_truth = COCO(
        {"images": [{"id": 1, "width": 99, "height": 99}], "categories": categories, "annotations": annotations}
    )
    results = [
        {"image_id": 1, "category_id": category, "bbox": [x, 0, 10, 10], "score": 1 - i / 10}
        for i, (category, x) in enumerate(detections)
    ]
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_curves_by_class():
    evaluation = evaluate([(3, 0), (3, 20), (7, 40)], [(3, 0), (7, 60), (7, 40)])
    recalls, precisions = precision_recall(evaluation)
    assert list(precisions) == ["a", "b"]
    assert precisions["a"].tolist() == [1.0 if recall <= 0.5 else 0.0 for recall in recalls]  # one of two objects
    assert np.allclose(precisions["b"], 0.5)  # after a false positive
    mean = np.mean([precision.mean() for precision in precisions.values()])
    assert mean == pytest.approx(evaluation.stats[1])  # AP50


def test_no_detections():
    recalls, precisions = precision_recall(None)
    assert recalls.shape == (101,) and precisions == {}
