"""Counts and recall compared with NumPy."""

import numpy as np
import pytest
import torch

from d2_maskrcnn.inspection.anchors import draw_anchors, inspect_anchors, label_scene, level_scene, recall


def plain_iou(a, b):
    """Compute the (n, m) IoU of XYXY boxes, one pair after the other."""
    result = np.zeros((len(a), len(b)))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            w = min(p[2], q[2]) - max(p[0], q[0])
            h = min(p[3], q[3]) - max(p[1], q[1])
            common = max(w, 0) * max(h, 0)
            union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - common
            result[i, j] = common / union if union > 0 else 0
    return result


@pytest.mark.parametrize(
    ("boxes", "objects", "expected"),
    [
        ([], [], None),
        ([], [[0, 0, 10, 10]], {"0.50": 0.0, "0.75": 0.0}),
        ([[0, 0, 10, 6]], [[0, 0, 10, 10]], {"0.50": 1.0, "0.75": 0.0}),
        ([[0, 0, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 10], [20, 20, 30, 30]], {"0.50": 0.5, "0.75": 0.5}),
    ],
)
def test_recall(boxes, objects, expected):
    assert recall(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(objects).reshape(-1, 4).float()
    ) == (expected)


def test_anchors_of_each_level_are_those_of_its_grid(observation):
    findings = inspect_anchors(observation)
    assert [level.name for level in findings.levels] == ["p2", "p3", "p4", "p5", "p6"]
    for level, stride in zip(findings.levels, (4, 8, 16, 32, 64), strict=True):
        assert level.stride == stride
        assert level.grid == (64 // stride, 64 // stride)
        assert level.anchors == 3 * (64 // stride) ** 2
    assert [round(w * h) for w, h in findings.levels[0].sizes] == [64, 64, 64]


def test_labels_follow_the_paper(observation, cfg):
    """Compute the labels from the IoU: Ren et al. 2015, section 3.1.2."""
    findings = inspect_anchors(observation)
    anchors = np.concatenate([level.numpy() for level in observation.intermediates.anchors])
    iou = plain_iou(anchors, observation.gt_boxes().numpy())
    best = iou.max(axis=1)
    low, high = cfg.MODEL.RPN.IOU_THRESHOLDS
    # Ties for an object's best anchor are decided by the last bit of float32, so positives are bounded on both sides.
    certain = best >= high
    possible = certain | np.isclose(iou, iou.max(axis=0), atol=1e-6).any(axis=1)
    labels = observation.training.anchor_labels[0].numpy()
    assert (labels[certain] == 1).all() and possible[labels == 1].all()
    assert all((labels[np.isclose(column, column.max(), atol=1e-6)] == 1).any() for column in iou.T)
    np.testing.assert_array_equal(labels == 0, (best < low) & (labels != 1))
    positive, negative = labels == 1, labels == 0
    assert sum(level.positive for level in findings.levels) == positive.sum() > 0
    assert sum(level.negative for level in findings.levels) == negative.sum() > 0
    assert sum(level.neutral for level in findings.levels) == (labels == -1).sum()
    for level in findings.levels:
        assert level.positive + level.negative + level.neutral == level.anchors
        assert level.sampled_positive <= level.positive and level.sampled_negative <= level.negative


def test_steps_and_their_recall(observation, cfg):
    findings = inspect_anchors(observation)
    all_anchors, top, refined, clipped, kept = findings.steps
    assert all_anchors.count == sum(level.anchors for level in findings.levels)
    assert (
        top.count
        == refined.count
        == sum(min(level.anchors, cfg.MODEL.RPN.PRE_NMS_TOPK_TEST) for level in findings.levels)
    )
    assert kept.count <= min(clipped.count, cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    assert clipped.boxes.min() >= 0 and clipped.boxes.max() <= 64
    for step in findings.steps:
        assert sum(step.per_level) == step.count == len(step.boxes)
        best = plain_iou(step.boxes.numpy(), observation.gt_boxes().numpy()).max(axis=0)
        assert step.recall == {
            "0.50": pytest.approx((best >= 0.5).mean()),
            "0.75": pytest.approx((best >= 0.75).mean()),
        }


def test_the_top_anchors_are_the_best_scored(observation):
    logits = observation.intermediates.rpn_logits[0][0].numpy()
    chosen = inspect_anchors(observation).steps[1].boxes[:5].numpy()
    np.testing.assert_array_equal(
        chosen, observation.intermediates.anchors[0].numpy()[np.argsort(-logits, kind="stable")[:5]]
    )


def test_without_ground_truth_there_are_counts_but_no_labels(blind_observation):
    findings = inspect_anchors(blind_observation)
    assert findings.ground_truth == 0
    assert all(step.recall is None for step in findings.steps)
    assert all(level.positive is None for level in findings.levels)
    assert label_scene(blind_observation).layers == []
    assert set(draw_anchors(blind_observation)) == {"levels", "proposals"}


def test_figures_have_the_boxes(observation):
    assert set(draw_anchors(observation)) == {"levels", "labels", "proposals"}
    # Three anchors at one position of each of five levels.
    assert [len(layer.marks) for layer in level_scene(observation).layers] == [3] * 5
