"""Numbers of the box head compared with NumPy."""

import numpy as np
import pytest

from d2_maskrcnn.inspection.boxes import draw_boxes, inspect_boxes, refinement_scene


def test_counts(observation, cfg):
    findings = inspect_boxes(observation)
    probabilities = observation.intermediates.class_probs[0].numpy()
    assert findings.regions == len(probabilities) == sum(findings.per_level.values())
    assert findings.foreground_regions == (probabilities.argmax(axis=1) < 4).sum()
    assert findings.candidates == (probabilities[:, :4] > cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST).sum() > 0
    assert findings.kept == len(observation.intermediates.detections[0]) == len(findings.detections) > 0
    assert sum(findings.kept_per_class.values()) == findings.kept
    assert sum(findings.candidates_per_class.values()) == findings.candidates


def test_each_pair_is_a_proposal_and_its_own_decoded_box(observation):
    """Decode the deltas: Girshick et al. 2014, appendix C, with the config's weights 10, 10, 5, 5."""
    intermediates = observation.intermediates
    for pair in inspect_boxes(observation).detections:
        x0, y0, x1, y1 = intermediates.rois[0].proposal_boxes.tensor[pair.roi].tolist()
        dx, dy, dw, dh = intermediates.box_deltas[pair.roi].numpy().reshape(-1, 4)[pair.class_index] / [10, 10, 5, 5]
        width, height = x1 - x0, y1 - y0
        cx, cy = x0 + width / 2 + dx * width, y0 + height / 2 + dy * height
        half = np.array([width * np.exp(dw), height * np.exp(dh)]) / 2
        expected = np.clip([cx - half[0], cy - half[1], cx + half[0], cy + half[1]], 0, 64)
        np.testing.assert_allclose(pair.after, expected, atol=2e-3)
        np.testing.assert_allclose(pair.before, [x0, y0, x1, y1], atol=1e-3)
        assert pair.score == pytest.approx(float(intermediates.class_probs[0][pair.roi, pair.class_index]))
        side = np.sqrt(width * height)
        level = int(np.clip(np.floor(4 + np.log2(side / 224 + 1e-8)), 2, 5))
        assert pair.level == f"p{level}"


def test_scene_pairs_proposals_with_detections(observation):
    layers = {layer.name: layer for layer in refinement_scene(observation).layers}
    kept = inspect_boxes(observation).kept
    assert len(layers["proposals"].marks) == len(layers["detections"].marks) == len(layers["moves"].marks) == kept
    assert layers["proposals"].style == "dotted" and layers["detections"].style == "solid"
    assert all(mark.line for mark in layers["moves"].marks)


def test_figures(blind_observation):
    assert set(draw_boxes(blind_observation)) == {"refinement", "levels"}


def test_regression_targets_of_sampled_regions(observation, cfg):
    """Compute the targets: Girshick et al. 2014, appendix C."""
    findings = inspect_boxes(observation)
    rois = observation.training.rois[0]
    foreground = rois[rois.gt_classes < 4]
    assert findings.sampled == {"foreground": len(foreground), "background": len(rois) - len(foreground)}
    before, after = foreground.proposal_boxes.tensor.numpy(), foreground.gt_boxes.tensor.numpy()
    dx = ((after[:, 0] + after[:, 2]) - (before[:, 0] + before[:, 2])) / 2 / (before[:, 2] - before[:, 0])
    dh = np.log((after[:, 3] - after[:, 1]) / (before[:, 3] - before[:, 1]))
    for name, values, weight in (("dx", dx, 10), ("dh", dh, 5)):
        assert findings.deltas[name]["mean"] == pytest.approx(values.mean(), abs=1e-5)
        assert findings.deltas[name]["normalized_std"] == pytest.approx(weight * values.std(), rel=1e-4)
