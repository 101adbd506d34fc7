"""The ground truth of dataset records as detections, for drawing."""

import numpy as np
import pytest

from d2_maskrcnn.data.ground_truth import ground_truth_detections
from detectron2.structures import BoxMode

SQUARE = {"bbox": [1, 2, 3, 1], "category_id": 2, "segmentation": [[1, 2, 4, 2, 4, 3, 1, 3]], "iscrowd": 0}


@pytest.mark.parametrize("record", [{}, {"annotations": []}])
def test_record_without_annotations(record):
    ground_truth = ground_truth_detections({"height": 4, "width": 5, **record})
    assert ground_truth.boxes.shape == (0, 4) and len(ground_truth.masks) == len(ground_truth) == 0


def test_ground_truth_of_a_record_leaves_crowds_out():
    record = {"height": 4, "width": 5, "annotations": [SQUARE, {**SQUARE, "iscrowd": 1}]}
    ground_truth = ground_truth_detections(record)
    assert ground_truth.boxes.tolist() == [[1, 2, 4, 3]] and ground_truth.classes.tolist() == [2]
    assert np.argwhere(ground_truth.masks.image(0)).tolist() == [[2, 1], [2, 2], [2, 3]]


def test_ground_truth_boxes_follow_their_box_mode():
    modes = {BoxMode.XYWH_ABS: [1, 2, 3, 1], BoxMode.XYXY_ABS: [1, 2, 4, 3]}
    annotations = [{**SQUARE, "bbox": box, "bbox_mode": mode} for mode, box in modes.items()]
    ground_truth = ground_truth_detections({"height": 4, "width": 5, "annotations": annotations})
    assert ground_truth.boxes.tolist() == [[1, 2, 4, 3]] * 2


def test_object_without_a_mask():
    annotation = {key: value for key, value in SQUARE.items() if key != "segmentation"}
    ground_truth = ground_truth_detections({"height": 4, "width": 5, "annotations": [annotation]})
    assert len(ground_truth) == 1 and not ground_truth.masks.image(0).any()
