import numpy as np
import pytest

from d2_maskrcnn.evaluation.outcomes import compare, match
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import CropMasks

SIZE = (40, 40)


def detections(boxes, classes, masks=True):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    images = np.zeros((len(boxes), *SIZE), bool)
    for image, (x0, y0, x1, y1) in zip(images, boxes.astype(int), strict=True):
        image[y0:y1, x0:x1] = masks
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    return Detections(boxes, scores, np.array(classes, np.int64), SIZE, CropMasks.from_images(images, SIZE))


def test_nothing_to_compare():
    assert compare(detections([], []), detections([], [])) == ([], [])
    assert match(np.zeros(0, int), np.zeros(2, int), np.zeros((0, 2))) == ([], [0, 1])


def test_outcomes():
    """A true positive, its duplicate, an object of another class, background, and an object without detection."""
    ground_truth = detections([[0, 0, 10, 10], [20, 0, 30, 10], [0, 20, 10, 30]], [0, 1, 1])
    predictions = detections([[0, 0, 10, 9], [0, 0, 10, 8], [20, 0, 30, 10], [30, 30, 40, 40]], [0, 0, 0, 1])
    outcomes, unmatched = compare(ground_truth, predictions)
    assert outcomes == [("TP", 0), ("FP", None), ("wrong class", 1), ("FP", None)] and unmatched == [2]


def test_a_detection_of_the_right_class_has_priority():
    overlaps = np.array([[0.9], [0.6]])
    assert match(np.array([1, 0]), np.array([0]), overlaps) == ([("FP", None), ("TP", 0)], [])


@pytest.mark.parametrize(("cls", "expected"), [(0, "ignored"), (1, "FP")])
def test_crowd_regions_are_ignored(cls, expected):
    outcomes, unmatched = match(np.array([cls]), np.array([0]), np.array([[1.0]]), crowd=np.array([True]))
    assert outcomes == [(expected, None)] and unmatched == []


def test_objects_without_a_mask_are_compared_by_their_boxes():
    ground_truth = detections([[0, 0, 10, 10]], [0], masks=False)
    assert compare(ground_truth, detections([[0, 0, 10, 10]], [0])) == ([("TP", 0)], [])
