"""Masks: placed where the model placed them, with the IoU that counting pixels gives."""

import numpy as np
import pytest

from d2_maskrcnn.inspection.masks import draw_masks, inspect_masks, mask_targets, strip


def test_placed_masks_are_the_results(observation):
    results = observation.stages.results[0]
    found = inspect_masks(observation)
    assert len(found) == len(results) > 0
    for finding in found:
        whole = np.zeros(observation.output_size, bool)
        x0, y0, x1, y1 = finding.window
        whole[y0:y1, x0:x1] = finding.placed
        np.testing.assert_array_equal(whole, results.pred_masks[finding.detection].numpy())
        assert finding.pixels == whole.sum()
        np.testing.assert_array_equal(finding.placed, finding.resized >= 0.5)


def test_probabilities_are_the_sigmoid_of_the_logits_of_the_class(observation):
    logits = observation.stages.mask_logits.numpy()
    for finding in inspect_masks(observation):
        expected = 1 / (1 + np.exp(-logits[finding.detection, finding.class_index]))
        np.testing.assert_allclose(finding.probabilities, expected, rtol=1e-5)


def test_iou_with_the_annotation(observation):
    truth = observation.truth
    results = observation.stages.results[0]
    for finding in inspect_masks(observation):
        mask = results.pred_masks[finding.detection].numpy()
        ious = [
            (mask & truth.masks[g]).sum() / max((mask | truth.masks[g]).sum(), 1)
            for g in range(len(truth))
            if truth.classes[g] == finding.class_index and not truth.crowd[g]
        ]
        best = max(ious, default=0)
        assert (finding.iou or 0) == pytest.approx(best, abs=1e-6)


def test_targets_are_cut_from_the_annotation(observation):
    targets = mask_targets(observation)
    assert targets
    for target in targets:
        assert target.mask.shape == (28, 28) and target.mask.dtype == bool
    assert any(target.mask.mean() > 0.3 for target in targets)


def test_without_annotation(blind_observation):
    assert mask_targets(blind_observation) == []
    found = inspect_masks(blind_observation)
    assert all(finding.iou is None and finding.annotated is None for finding in found)
    tiles = strip(found[0], blind_observation.picture, blind_observation.output_size)
    assert tiles.shape == (112, 560, 3)
    assert set(draw_masks(blind_observation)) == {"masks"}


def test_limit(observation):
    assert len(inspect_masks(observation, limit=2)) == 2
