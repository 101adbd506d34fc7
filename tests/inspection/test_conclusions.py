from dataclasses import replace

import numpy as np
import pytest

from d2_maskrcnn.inspection import conclusions
from d2_maskrcnn.inspection.anchors import inspect_anchors
from d2_maskrcnn.inspection.boxes import inspect_boxes
from d2_maskrcnn.inspection.data import inspect_data
from d2_maskrcnn.inspection.result import ResultFindings


def result(detections=3, objects=4, **counts):
    outcomes = {"TP": 0, "wrong class": 0, "FP": 0, "ignored": 0, "FN": 0, **counts}
    return ResultFindings(0.5, detections, detections, {}, objects, outcomes)


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        (result(0), "There are no detections"),
        (result(TP=4), "All 4 objects are detected."),
        (result(objects=0, FP=3), "The image has no objects"),
        (result(TP=3, FN=1), "1 of 4 objects are not detected."),
        (replace(result(TP=1, FN=3), below_threshold=2), "a lower score threshold would detect 2 of them"),
        (result(TP=2, FP=1), "1 of 3 detections are false positives."),
        (replace(result(TP=2, FP=1), duplicates=1), "1 of them on objects that are detected already"),
    ],
)
def test_result(findings, expected):
    assert expected in " ".join(conclusions.about_result(findings))


def test_without_ground_truth_there_is_nothing_to_conclude(blind_observation):
    assert conclusions.about_anchors(inspect_anchors(blind_observation)) == []
    assert conclusions.about_masks([]) == []


def test_lost_recall_names_its_step(observation):
    findings = inspect_anchors(observation)
    recalls = (0.9, 0.9, 0.9, 0.8, 0.4)
    steps = [
        replace(step, recall={"0.50": value, "0.75": 0.0}) for step, value in zip(findings.steps, recalls, strict=True)
    ]
    text = " ".join(conclusions.about_anchors(replace(findings, steps=steps, uncovered=2)))
    assert '40% are lost at the step "kept after NMS"' in text and "2 of" in text


@pytest.mark.parametrize(
    ("used", "expected"), [(["p2"], "Raise INPUT.MIN_SIZE_TEST"), (["p4", "p5"], "Lower INPUT.MIN_SIZE_TEST"), ([], "")]
)
def test_unused_levels(observation, used, expected):
    findings = inspect_boxes(observation)
    per_level = {name: (10 if name in used or not used else 0) for name in findings.per_level}
    text = " ".join(conclusions.about_boxes(replace(findings, per_level=per_level)))
    assert (expected in text) if expected else "pooled from" not in text


def test_data(cfg):
    findings = inspect_data(cfg, cfg.DATASETS.TRAIN[0])
    bad = replace(
        findings, sqrt_areas=np.full(findings.objects, 1.0), best_anchor_iou=np.zeros(findings.objects),
        categories={**findings.categories, "nothing": 0},
    )  # fmt: skip
    text = " ".join(conclusions.about_data(bad))
    for expected in ("smaller than half the smallest anchor", "No anchor shape fits 100%", "1 categories"):
        assert expected in text
