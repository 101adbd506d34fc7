"""Every kind of difference from the annotation, planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2_maskrcnn.inspection.ground_truth import Truth
from d2_maskrcnn.inspection.result import draw_result, inspect_result, result_scene
from d2_maskrcnn.modeling.intermediates import Intermediates
from detectron2.structures import Boxes, Instances

NAMES = ["cat", "dog"]


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((40, 40), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def observed(observation, found, truth):
    """An observation of planted detections (box, class, score) and annotations (box, class, crowd)."""
    results = Instances((40, 40))
    results.pred_boxes = Boxes(torch.tensor([f[0] for f in found], dtype=torch.float32).reshape(-1, 4))
    results.pred_classes = torch.tensor([f[1] for f in found], dtype=torch.int64)
    results.scores = torch.tensor([f[2] for f in found], dtype=torch.float32)
    intermediates = Intermediates(results=[results])
    boxes = np.array([t[0] for t in truth], dtype=np.float32).reshape(-1, 4)
    masks = np.stack([rectangle(*t[0]) for t in truth]) if truth else np.zeros((0, 40, 40), bool)
    annotated = Truth(boxes, np.array([t[1] for t in truth], int), masks, np.array([t[2] for t in truth], bool))
    image = np.zeros((40, 40, 3), np.uint8)
    return replace(
        observation, intermediates=intermediates, truth=annotated, class_names=NAMES, output_size=(40, 40), image=image
    )


A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 40]


@pytest.mark.parametrize(
    ("found", "truth", "counts"),
    [
        ([], [], {}),
        ([], [(A, 0, False)], {"missed": 1}),
        ([(A, 0, 0.9)], [], {"false": 1}),
        ([(A, 0, 0.9)], [(A, 0, False)], {"right": 1}),
        ([(A, 1, 0.9)], [(A, 0, False)], {"confused": 1}),
        ([(A, 0, 0.9), (A, 0, 0.8)], [(A, 0, False)], {"right": 1, "false": 1}),
        ([(A, 0, 0.4)], [(A, 0, False)], {"missed": 1}),
        ([([20, 20, 25, 25], 0, 0.9)], [(B, 0, True)], {"ignored": 1}),
        ([(A, 1, 0.9), (A, 0, 0.6)], [(A, 0, False)], {"right": 1, "false": 1}),
        ([(A, 0, 0.9), (C, 1, 0.8)], [(A, 0, False), (B, 1, False), (C, 0, False)],
         {"right": 1, "confused": 1, "missed": 1}),
    ],
)  # fmt: skip
def test_differences(observation, found, truth, counts):
    findings = inspect_result(observed(observation, found, truth), threshold=0.5)
    expected = dict.fromkeys(("right", "confused", "false", "ignored", "missed"), 0)
    assert findings.counts == {**expected, **counts}


def test_verdicts_name_class_and_overlap(observation):
    findings = inspect_result(observed(observation, [([0, 0, 10, 8], 0, 0.9)], [(A, 0, False)]))
    verdict = findings.verdicts[0]
    assert (verdict.verdict, verdict.class_name, verdict.truth_class) == ("right", "cat", "cat")
    assert verdict.iou == pytest.approx(0.8)


def test_no_detections_still_draws(observation):
    empty = observed(observation, [], [(A, 0, False)])
    assert [len(layer.marks) for layer in result_scene(empty).layers if layer.name == "missed"] == [1]
    assert set(draw_result(empty)) == {"result", "differences"}


def test_without_annotation_nothing_is_judged(blind_observation):
    findings = inspect_result(blind_observation, 0.0)
    assert findings.annotated is None and findings.verdicts == [] and findings.counts == {}
    assert findings.shown == findings.detections == len(blind_observation.intermediates.results[0])
    assert set(draw_result(blind_observation)) == {"result"}
