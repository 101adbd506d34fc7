import pytest
import torch

from d2_maskrcnn.modeling import Stages, active_stages, record_stages


def test_nothing_recorded_by_default(narrow):
    assert active_stages() is None
    stages = Stages()
    narrow.model().eval()(narrow.inputs())
    assert stages == Stages()


def test_context_ends_also_after_an_error():
    with pytest.raises(ZeroDivisionError), record_stages() as stages:
        assert active_stages() is stages
        _ = 1 / 0
    assert active_stages() is None


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_stage"):
        Stages().record(no_stage=1)


def test_clear():
    stages = Stages()
    stages.record(images=torch.zeros(1))
    stages.append(proposals=1)
    stages.clear()
    assert stages.images is None and stages.proposals == []


def test_inference_is_recorded_whole(narrow):
    model, inputs = narrow.model().eval(), narrow.inputs()
    with record_stages() as stages:
        outputs = model(inputs)
    assert stages.images.shape == (2, 3, 96, 96) and stages.image_sizes == [(64, 96), (80, 56)]
    assert list(stages.bottom_up) == ["stem", "res2", "res3", "res4", "res5"]
    assert list(stages.features) == ["p2", "p3", "p4", "p5", "p6"]
    sizes = [24 * 24, 12 * 12, 6 * 6, 3 * 3, 2 * 2]
    assert [tuple(a.shape) for a in stages.anchors] == [(3 * n, 4) for n in sizes]
    assert [tuple(x.shape) for x in stages.rpn_logits] == [(2, 3 * n) for n in sizes]
    assert [tuple(x.shape) for x in stages.rpn_deltas] == [(2, 3 * n, 4) for n in sizes]
    assert [tuple(x.shape) for x in stages.topk_anchors] == [(2, min(200, 3 * n)) for n in sizes]
    number = sum(len(item) for item in stages.proposals)
    assert [len(item) for item in stages.rois] == [len(item) for item in stages.proposals] == [100, 100]
    assert stages.roi_levels.shape == (number,) and stages.box_pooled.shape == (number, 16, 7, 7)
    assert stages.class_logits.shape == (number, 4) and stages.box_deltas.shape == (number, 12)
    assert [tuple(x.shape) for x in stages.class_probs] == [(100, 4)] * 2
    assert [tuple(x.shape) for x in stages.decoded_boxes] == [(100, 3, 4)] * 2
    masks = sum(len(item) for item in stages.detections)
    assert stages.mask_levels.shape == (masks,) and stages.mask_logits.shape == (masks, 3, 28, 28)
    assert stages.results == [output["instances"] for output in outputs]
    assert stages.losses == {} and stages.anchor_labels == []


def test_what_is_recorded_fits_together(narrow):
    model = narrow.model().eval()
    with record_stages() as stages:
        model(narrow.inputs())
    for i in range(2):
        clipped, kept = stages.clipped_proposals[i], stages.proposals[i]
        for level, anchor, logit in zip(kept.level.tolist(), kept.anchor.tolist(), kept.objectness_logits, strict=True):
            assert stages.rpn_logits[level][i, anchor] == logit
        assert len(clipped) > len(kept)
        candidates, keep = stages.candidates[i], stages.kept_candidates[i]
        found = stages.detections[i]
        assert torch.equal(candidates.pred_boxes.tensor[keep], found.pred_boxes.tensor)
        roi, classes = candidates.roi[keep], found.pred_classes
        assert torch.equal(stages.class_probs[i][roi, classes], found.scores)
        boxes = stages.decoded_boxes[i][roi, classes]
        height, width = stages.image_sizes[i]
        limit = torch.tensor([width, height, width, height])
        assert torch.equal(boxes.clamp(min=0).minimum(limit), found.pred_boxes.tensor)


def test_training_is_recorded_without_gradients(narrow):
    stages = Stages()
    losses = narrow.model().train()(narrow.inputs(), stages=stages)
    assert {name: loss.item() for name, loss in losses.items()} == {n: x.item() for n, x in stages.losses.items()}
    total = sum(len(anchors) for anchors in stages.anchors)
    assert [labels.shape for labels in stages.anchor_labels] == [(total,)] * 2
    for labels, sampled, matches in zip(
        stages.anchor_labels, stages.sampled_anchor_labels, stages.anchor_matches, strict=True
    ):
        assert set(labels.tolist()) == {-1, 0, 1} and torch.equal(labels, sampled)  # more samples than anchors
        assert matches.max() < 3
    assert [len(labels) for labels in stages.roi_labels] == [len(rois) for rois in stages.rois]
    foreground = sum(int((rois.gt_classes < 3).sum()) for rois in stages.rois)
    assert stages.mask_targets.shape == (foreground, 28, 28) and stages.mask_targets.dtype == torch.bool
    assert not any(x.requires_grad for x in (stages.class_logits, stages.box_pooled, *stages.features.values()))


def test_recording_does_not_change_the_results(narrow):
    model = narrow.model().eval()
    plain = model(narrow.inputs())
    recorded = model(narrow.inputs(), stages=Stages())
    for a, b in zip(plain, recorded, strict=True):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)
