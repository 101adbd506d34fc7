"""Every outcome of a detection, with constructed detections and ground truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2_maskrcnn.data.ground_truth import GroundTruth
from d2_maskrcnn.inspection.masks import inspect_masks
from d2_maskrcnn.inspection.result import draw_result, inspect_result, interpolated_precision, result_scene
from d2_maskrcnn.modeling.intermediates import Intermediates
from d2_maskrcnn.structures.mask_instances import MaskInstances
from detectron2.structures import Boxes, Instances

NAMES = ["cat", "dog"]
A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 40]


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((40, 40), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def observed(observation, detections, objects, masks=False):
    """Make an observation of detections (box, class, score) and ground truth (box, class, crowd)."""
    results = Instances((40, 40))
    results.pred_boxes = Boxes(torch.tensor([d[0] for d in detections], dtype=torch.float32).reshape(-1, 4))
    results.pred_classes = torch.tensor([d[1] for d in detections], dtype=torch.int64)
    results.scores = torch.tensor([d[2] for d in detections], dtype=torch.float32)
    if masks:
        results = MaskInstances.from_probabilities(results, torch.ones(len(detections), 28, 28))
    ground_truth = GroundTruth(
        np.array([o[0] for o in objects], dtype=np.float32).reshape(-1, 4),
        np.array([o[1] for o in objects], int),
        np.stack([rectangle(*o[0]) for o in objects]) if objects else np.zeros((0, 40, 40), bool),
        np.array([o[2] for o in objects], bool),
    )
    image = np.zeros((40, 40, 3), np.uint8)
    return replace(
        observation, intermediates=Intermediates(results=[results]), ground_truth=ground_truth, class_names=NAMES,
        output_size=(40, 40), original=image, image=image,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("detections", "objects", "counts"),
    [
        ([], [], {}),
        ([], [(A, 0, False)], {"FN": 1}),
        ([(A, 0, 0.9)], [], {"FP": 1}),
        ([(A, 0, 0.9)], [(A, 0, False)], {"TP": 1}),
        ([(A, 1, 0.9)], [(A, 0, False)], {"wrong class": 1}),
        ([(A, 0, 0.9), (A, 0, 0.8)], [(A, 0, False)], {"TP": 1, "FP": 1}),
        ([(A, 0, 0.4)], [(A, 0, False)], {"FN": 1}),
        ([([20, 20, 25, 25], 0, 0.9)], [(B, 0, True)], {"ignored": 1}),
        ([([20, 20, 25, 25], 1, 0.9)], [(B, 0, True)], {"FP": 1}),
        ([(A, 1, 0.9), (A, 0, 0.6)], [(A, 0, False)], {"TP": 1, "FP": 1}),
        ([(A, 0, 0.9), (C, 1, 0.8)], [(A, 0, False), (B, 1, False), (C, 0, False)],
         {"TP": 1, "wrong class": 1, "FN": 1}),
    ],
)  # fmt: skip
def test_outcomes(observation, detections, objects, counts):
    findings = inspect_result(observed(observation, detections, objects), threshold=0.5)
    expected = dict.fromkeys(("TP", "wrong class", "FP", "ignored", "FN"), 0)
    assert findings.counts == {**expected, **counts}


def test_outcomes_name_class_and_iou(observation):
    findings = inspect_result(observed(observation, [([0, 0, 10, 8], 0, 0.9)], [(A, 0, False)]))
    (item,) = findings.outcomes
    assert (item.outcome, item.class_name, item.gt_class) == ("TP", "cat", "cat")
    assert item.iou == pytest.approx(0.8)


def test_objects_without_a_mask_are_compared_by_their_boxes(observation):
    seen = observed(observation, [(A, 0, 0.9), (B, 1, 0.8)], [(A, 0, False), (B, 1, False)], masks=True)
    seen.ground_truth.masks[1] = False
    assert inspect_result(seen).counts["TP"] == 2


@pytest.mark.parametrize(
    ("detection", "objects", "expected"),
    [
        ((A, 0, 0.9), [(A, 0, False)], "IoU 1.00 with the ground truth"),
        ((A, 0, 0.9), [(A, 1, False)], "IoU 1.00 with the ground truth of another class, dog"),
        ((A, 0, 0.9), [([0, 0, 10, 8], 0, False), (A, 1, False)], "IoU 0.80 with the ground truth"),
        (
            (A, 0, 0.9),
            [([0, 0, 10, 4], 0, False), (A, 1, False)],
            "IoU 1.00 with the ground truth of another class, dog",
        ),
        ((A, 0, 0.9), [([0, 0, 10, 4], 0, False)], "IoU 0.40 with the ground truth"),
        ((A, 0, 0.9), [(B, 0, False)], "on no ground truth object (IoU below 0.1)"),
        ((A, 0, 0.9), [([9, 9, 19, 19], 0, False)], "on no ground truth object (IoU below 0.1)"),
        ((A, 0, 0.9), [(A, 0, True)], "on no ground truth object (IoU below 0.1)"),
        ((A, 0, 0.9), [], "on no ground truth object (IoU below 0.1)"),
    ],
)  # fmt: skip
def test_masks_are_compared_in_words(observation, detection, objects, expected):
    (finding,) = inspect_masks(observed(observation, [detection], objects, masks=True))
    assert finding.comparison() == expected


def test_no_detections_are_drawn(observation):
    empty = observed(observation, [], [(A, 0, False)])
    assert [len(layer.marks) for layer in result_scene(empty).layers if layer.name == "FN"] == [1]
    assert set(draw_result(empty)) == {"result", "outcomes", "precision_recall"}


def test_without_ground_truth_there_are_no_outcomes(blind_observation):
    findings = inspect_result(blind_observation, 0.0)
    assert findings.ground_truth is None and findings.outcomes == [] and findings.counts == {}
    assert findings.shown == findings.detections == len(blind_observation.intermediates.results[0])
    assert set(draw_result(blind_observation)) == {"result"}


def test_average_precision_is_cocos():
    """One image, one class: TP, FP, TP of three objects. Recalls up to 1/3 have precision 1, up to 2/3 have 2/3."""
    precisions = interpolated_precision(np.array([True, False, True]), 3)
    expected = np.where(np.linspace(0, 1, 101) <= 1 / 3, 1, np.where(np.linspace(0, 1, 101) <= 2 / 3, 2 / 3, 0))
    np.testing.assert_allclose(precisions, expected)
    assert not interpolated_precision(np.zeros(0, bool), 3).any()


def test_numbers_below_the_threshold(observation):
    """A detection below the threshold would match B; a second detection of A is a duplicate."""
    detections = [(A, 0, 0.9), (A, 0, 0.8), (B, 1, 0.3)]
    findings = inspect_result(observed(observation, detections, [(A, 0, False), (B, 1, False)]))
    assert (findings.below_threshold, findings.duplicates) == (1, 1)
    assert findings.overlaps.tolist() == [[1, 0], [1, 0]]
    assert findings.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
