"""Masks compared with the model's output, and their IoU with pixel counts."""

import numpy as np
import pytest
import torch

from d2_maskrcnn.inspection.masks import draw_masks, inspect_masks, mask_targets, strip


def test_placed_masks_are_the_results(observation):
    results = observation.intermediates.results[0]
    findings = inspect_masks(observation)
    assert len(findings) == len(results) > 0
    for finding in findings:
        whole = np.zeros(observation.output_size, bool)
        x0, y0, x1, y1 = finding.window
        whole[y0:y1, x0:x1] = finding.placed
        np.testing.assert_array_equal(whole, results.pred_masks[finding.detection].numpy())
        assert finding.pixels == whole.sum()
        np.testing.assert_array_equal(finding.placed, finding.resized >= 0.5)


def test_resized_probabilities_are_those_of_bilinear_sampling(observation):
    height, width = observation.output_size
    boxes = observation.intermediates.results[0].pred_boxes.tensor.double()
    ys, xs = torch.meshgrid(torch.arange(height).double() + 0.5, torch.arange(width).double() + 0.5, indexing="ij")
    for finding in inspect_masks(observation):
        x0, y0, x1, y1 = boxes[finding.detection]
        grid = torch.stack([(xs - x0) / (x1 - x0) * 2 - 1, (ys - y0) / (y1 - y0) * 2 - 1], dim=-1)[None]
        grid_of = torch.as_tensor(finding.probabilities)[None, None].double()
        whole = torch.nn.functional.grid_sample(grid_of, grid, align_corners=False)[0, 0].numpy()
        left, top, right, bottom = finding.window
        np.testing.assert_allclose(finding.resized, whole[top:bottom, left:right], atol=2e-4)
        assert len(np.unique(finding.resized)) > 2  # probabilities, not yet thresholded


def test_probabilities_are_the_sigmoid_of_the_logits_of_the_class(observation):
    logits = observation.intermediates.mask_logits.numpy()
    for finding in inspect_masks(observation):
        expected = 1 / (1 + np.exp(-logits[finding.detection, finding.class_index]))
        np.testing.assert_allclose(finding.probabilities, expected, rtol=1e-5)


def test_iou_with_the_ground_truth(observation):
    ground_truth, results = observation.ground_truth, observation.intermediates.results[0]
    for finding in inspect_masks(observation):
        mask = results.pred_masks[finding.detection].numpy()
        ious = [(mask & other).sum() / max((mask | other).sum(), 1) for other in ground_truth.masks]
        assert max(ious) == pytest.approx(finding.iou, abs=1e-6) if finding.iou else max(ious) < 0.1
        if finding.gt_index is not None:
            assert finding.iou == pytest.approx(ious[finding.gt_index], abs=1e-6)
            assert finding.gt_class == observation.class_name(ground_truth.classes[finding.gt_index])


def test_targets_are_cropped_from_the_ground_truth(observation):
    targets = mask_targets(observation)
    assert targets
    for target in targets:
        assert target.mask.shape == (28, 28) and target.mask.dtype == bool
    assert any(target.mask.mean() > 0.3 for target in targets)


def test_without_ground_truth(blind_observation):
    assert mask_targets(blind_observation) == []
    findings = inspect_masks(blind_observation)
    assert all(finding.iou is None and finding.gt_mask is None for finding in findings)
    tiles = strip(findings[0], blind_observation.original)
    assert tiles.shape == (112, 672, 3)
    assert set(draw_masks(blind_observation)) == {"masks"}


def test_limit(observation):
    assert len(inspect_masks(observation, limit=2)) == 2
