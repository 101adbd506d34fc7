import pytest
import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling import trace_inference, trace_losses
from d2_maskrcnn.modeling.intermediates import record_outputs
from detectron2.utils.events import EventStorage


def test_inference_is_traced_completely(narrow):
    trace = trace_inference(narrow.model().eval(), narrow.inputs())
    assert trace.images.shape == (2, 3, 96, 96) and trace.image_sizes == [(64, 96), (80, 56)]
    assert list(trace.bottom_up) == ["stem", "res2", "res3", "res4", "res5"]
    assert list(trace.features) == ["p2", "p3", "p4", "p5", "p6"]
    sizes = [24 * 24, 12 * 12, 6 * 6, 3 * 3, 2 * 2]
    assert [tuple(a.shape) for a in trace.anchors] == [(3 * n, 4) for n in sizes]
    assert [tuple(x.shape) for x in trace.rpn_logits] == [(2, 3 * n) for n in sizes]
    assert [tuple(x.shape) for x in trace.rpn_deltas] == [(2, 3 * n, 4) for n in sizes]
    assert [tuple(x.shape) for x in trace.topk_anchors] == [(2, min(200, 3 * n)) for n in sizes]
    number = sum(len(item) for item in trace.proposals)
    assert [len(item) for item in trace.rois] == [len(item) for item in trace.proposals] == [100, 100]
    assert trace.roi_levels.shape == (number,) and trace.box_pooled.shape == (number, 16, 7, 7)
    assert trace.class_logits.shape == (number, 4) and trace.box_deltas.shape == (number, 12)
    assert [tuple(x.shape) for x in trace.class_probs] == [(100, 4)] * 2
    assert [tuple(x.shape) for x in trace.decoded_boxes] == [(100, 3, 4)] * 2
    masks = sum(len(item) for item in trace.detections)
    assert trace.mask_levels.shape == (masks,) and trace.mask_logits.shape == (masks, 3, 28, 28)
    assert trace.mask_pooled.shape == (masks, 16, 14, 14)
    assert trace.losses == {} and trace.anchor_labels == []


def test_the_steps_are_consistent(narrow):
    trace = trace_inference(narrow.model().eval(), narrow.inputs())
    for i in range(2):
        clipped, kept = trace.clipped_proposals[i], trace.proposals[i]
        for level, anchor, logit in zip(kept.level.tolist(), kept.anchor.tolist(), kept.objectness_logits, strict=True):
            assert trace.rpn_logits[level][i, anchor] == logit
        assert len(clipped) > len(kept)
        assert torch.equal(kept.proposal_boxes.tensor, trace.rois[i].proposal_boxes.tensor)
        candidates, keep = trace.candidates[i], trace.kept_candidates[i]
        detections = trace.detections[i]
        assert torch.equal(candidates.pred_boxes.tensor[keep], detections.pred_boxes.tensor)
        roi, classes = candidates.roi[keep], detections.pred_classes
        assert torch.equal(trace.class_probs[i][roi, classes], detections.scores)
        boxes = trace.decoded_boxes[i][roi, classes]
        height, width = trace.image_sizes[i]
        limit = torch.tensor([width, height, width, height])
        assert torch.equal(boxes.clamp(min=0).minimum(limit), detections.pred_boxes.tensor)


@pytest.mark.parametrize("variant", ["plain", "options", "boxes_only"])
def test_the_results_are_those_of_the_model(narrow, variant):
    model = narrow.model(variant).eval()
    for expected, actual in zip(model(narrow.inputs()), trace_inference(model, narrow.inputs()).results, strict=True):
        assert set(expected["instances"].get_fields()) == set(actual.get_fields())
        assert torch.equal(expected["instances"].pred_boxes.tensor, actual.pred_boxes.tensor)
        assert variant == "boxes_only" or torch.equal(expected["instances"].pred_masks, actual.pred_masks)


@pytest.mark.parametrize("variant", ["plain", "options", "boxes_only"])
def test_the_losses_are_those_of_the_model(narrow, variant):
    """With random sampling: the seed is that of a validation loss."""
    model = narrow.model(variant, MODEL__RPN__BATCH_SIZE_PER_IMAGE=16, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=16).eval()
    state = torch.get_rng_state()
    with torch.no_grad(), EventStorage() as storage:
        expected, trace = model.losses(narrow.inputs()), trace_losses(model, narrow.inputs())
        assert storage.latest() == {}
    assert trace.losses == expected
    assert trace_losses(model, narrow.inputs(), seed=1).losses != expected
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_and_targets(narrow):
    trace = trace_losses(narrow.model().eval(), narrow.inputs())
    total = sum(len(anchors) for anchors in trace.anchors)
    assert [labels.shape for labels in trace.anchor_labels] == [(total,)] * 2
    for labels, sampled, matches in zip(
        trace.anchor_labels, trace.sampled_anchor_labels, trace.anchor_matches, strict=True
    ):
        assert set(labels.tolist()) == {-1, 0, 1} and torch.equal(labels, sampled)  # more samples than anchors
        assert matches.max() < 3
    assert [len(labels) for labels in trace.roi_labels] == [len(rois) for rois in trace.rois]
    foreground = sum(int((rois.gt_classes < 3).sum()) for rois in trace.rois)
    assert trace.mask_targets.shape == (foreground, 28, 28) and trace.mask_targets.dtype == torch.bool
    assert trace.mask_levels.shape == (foreground,)
    assert not any(x.requires_grad for x in (trace.class_logits, trace.box_pooled, *trace.features.values()))
    assert trace.candidates == [] and trace.results == []


def test_foreign_components(narrow):
    model = narrow.model().eval()
    model.roi_heads = nn.Identity()
    for trace in (trace_inference, trace_losses):
        with pytest.raises(UserError, match=r"MaskRCNNRPN .* Identity .*expected MaskRCNNRPN and MaskRCNNROIHeads"):
            trace(model, narrow.inputs())


def test_outputs_of_modules():
    layer, many = nn.Linear(2, 3), nn.Identity()
    with record_outputs({"layer": layer, "many": many, "idle": nn.ReLU()}) as outputs:
        first = layer(torch.ones(1, 2))
        many({"a": first, "b": "text"})
        many([first, first])
    layer(torch.ones(1, 2))
    assert torch.equal(outputs["layer"][0], first) and not outputs["layer"][0].requires_grad
    assert [len(outputs[name]) for name in ("layer", "many", "idle")] == [1, 3, 0]


def test_hooks_are_removed_after_an_error():
    layer = nn.Linear(2, 3)
    with pytest.raises(ZeroDivisionError), record_outputs({"layer": layer}) as outputs:
        _ = 1 / 0
    layer(torch.ones(1, 2))
    assert outputs == {"layer": []}
