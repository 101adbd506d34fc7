import pytest
import torch

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SHAPES = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5)}
IMAGES = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64), (64, 64)])


def heads(narrow, variant="plain", **overrides):
    torch.manual_seed(0)
    return narrow.fill(build_roi_heads(narrow.cfg(variant, **overrides), SHAPES))


def features():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 16, 64 // s.stride, 64 // s.stride, generator=generator) for name, s in SHAPES.items()}


def proposals(*boxes):
    instances = Instances((64, 64))
    instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.objectness_logits = torch.zeros(len(boxes))
    return instances


def target(*boxes, masks=True):
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 3
    if masks:
        bits = torch.zeros(len(boxes), 64, 64, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(bits, boxes, strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(bits)
    return instances


A, B = [4, 4, 30, 30], [20, 24, 60, 62]
FAR = [50, 0, 60, 10]


@pytest.mark.parametrize("append_gt", [True, False])
@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ([proposals(), proposals()], [target(), target()]),
        ([proposals(), proposals()], [target(masks=False), target(masks=False)]),
        ([proposals(FAR), proposals()], [target(masks=False), target(B)]),
        ([proposals(A, FAR), proposals(B)], [target(), target(A)]),
        ([proposals(A, FAR), proposals(B)], [target(A), target(B, A)]),
    ],
    ids=["no objects", "no objects, no masks", "objects in one image", "no overlap", "objects in both"],
)
def test_losses_and_gradients(narrow, given, targets, append_gt):
    model = heads(narrow, MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=append_gt)
    rois, losses = model(IMAGES, features(), given, targets)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"} and len(rois) == 2
    assert all(bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sampled_labels(narrow):
    model = heads(narrow)
    near_a = [5, 5, 31, 31]
    rois, _ = model(IMAGES, features(), [proposals(near_a, FAR), proposals(FAR)], [target(B, A), target()])
    labels = zip(rois[0].gt_classes.tolist(), rois[0].gt_index.tolist(), strict=True)
    by_box = dict(zip(map(tuple, rois[0].proposal_boxes.tensor.tolist()), labels, strict=True))
    assert by_box[tuple(near_a)] == (1, 1) and by_box[tuple(B)] == (0, 0) and by_box[tuple(A)] == (1, 1)
    assert by_box[tuple(FAR)][0] == 3
    foreground = rois[0][rois[0].gt_classes < 3]
    assert torch.equal(foreground.gt_boxes.tensor, torch.tensor([B, A]).float()[foreground.gt_index])
    assert rois[1].gt_classes.tolist() == [3] and rois[1].gt_boxes.tensor.abs().sum() == 0


def test_number_of_samples(narrow):
    model = heads(narrow, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=8, MODEL__ROI_HEADS__POSITIVE_FRACTION=0.25)
    many = proposals(*[A] * 10, *[FAR] * 10)
    with EventStorage() as storage:
        rois, _ = model(IMAGES, features(), [many, many], [target(A), target()])
    assert [int((r.gt_classes < 3).sum()) for r in rois] == [2, 0]
    assert [len(r) for r in rois] == [8, 8]
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest["roi_head/num_fg_samples"] == 1.0 and latest["roi_head/num_bg_samples"] == 7.0


def test_classification_events(narrow):
    model = heads(narrow)
    with EventStorage() as storage:
        training = model.compute_losses(features(), [proposals(A, FAR), proposals(B)], [target(A), target(B)])
    classes = torch.cat([rois.gt_classes for rois in training.rois])
    predicted = training.predictions.logits.argmax(1)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    foreground = classes < 3
    assert latest["fast_rcnn/cls_accuracy"] == pytest.approx((predicted == classes).double().mean().item())
    assert latest["fast_rcnn/fg_cls_accuracy"] == pytest.approx(
        (predicted == classes)[foreground].double().mean().item()
    )
    assert latest["fast_rcnn/false_negative"] == pytest.approx((predicted[foreground] == 3).double().mean().item())


def test_sampling_with_a_generator(narrow):
    model = heads(narrow, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=4, MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=False)
    many = [proposals(*[[x, 0, x + 8, 8] for x in range(40)])]
    levels = {name: feature[:1] for name, feature in features().items()}
    boxes = []
    for seed in (0, 0, 1):
        training = model.compute_losses(levels, many, [target()], torch.Generator().manual_seed(seed))
        boxes.append(training.rois[0].proposal_boxes.tensor.tolist())
    assert boxes[0] == boxes[1] != boxes[2]


def test_no_events_in_evaluation_mode(narrow):
    with EventStorage() as storage:
        heads(narrow).eval()(IMAGES, features(), [proposals(A, FAR), proposals(B)], [target(A), target(B)])
        assert storage.latest() == {}


def test_ignored_proposals(narrow):
    model = heads(narrow, MODEL__ROI_HEADS__IOU_THRESHOLDS=[0.3, 0.9], MODEL__ROI_HEADS__IOU_LABELS=[0, -1, 1],
                  MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=False)  # fmt: skip
    half = [4, 4, 30, 20]
    training = model.compute_losses(features(), [proposals(half, A, FAR), proposals(FAR)], [target(A), target()])
    assert training.classes[0].tolist() == [-1, 0, 3]
    assert sorted(training.rois[0].gt_classes.tolist()) == [0, 3]


@pytest.mark.parametrize(
    "given", [[proposals(), proposals()], [proposals(A, B), proposals()], [proposals(A), proposals(FAR)]]
)
def test_inference(narrow, given):
    model = heads(narrow, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0).eval()
    detections, losses = model(IMAGES, features(), given)
    assert losses == {}
    for item, regions in zip(detections, given, strict=True):
        assert item.image_size == (64, 64)
        assert item.pred_masks.shape == (len(item), 1, 28, 28)
        assert (len(item) > 0) == (len(regions) > 0)


def test_without_mask_head(narrow):
    model = heads(narrow, "boxes_only").eval()
    detections, _ = model(IMAGES, features(), [proposals(A), proposals()])
    assert not detections[0].has("pred_masks")
    _, losses = model(IMAGES, features(), [proposals(A), proposals()], [target(A, masks=False), target(masks=False)])
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def test_masks_for_given_boxes(narrow):
    model = heads(narrow, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0).eval()
    with torch.no_grad():
        detections, _ = model(IMAGES, features(), [proposals(A, B), proposals(FAR)])
        given = [Instances(f.image_size, pred_boxes=f.pred_boxes, pred_classes=f.pred_classes) for f in detections]
        again = model.forward_with_given_boxes(features(), given)
    assert sum(len(f) for f in detections) > 0
    for a, b in zip(detections, again, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)


def test_mask_head_trained_on_refined_boxes(narrow):
    given, targets = [proposals(A), proposals(B)], [target(A), target(B)]
    boxes = []
    for refined in (False, True):
        model = heads(
            narrow, MODEL__ROI_BOX_HEAD__TRAIN_ON_PRED_BOXES=refined, MODEL__ROI_HEADS__PROPOSAL_APPEND_GT=False
        )
        with torch.no_grad():
            model.box_predictor.bbox_pred.bias[0::4] += 2.0  # to the right by a fifth of the width
        rois, _ = model(IMAGES, features(), given, targets)
        boxes.append(rois[0].proposal_boxes.tensor)
    assert boxes[0].tolist() == [A] and boxes[1][0, 0] > A[0]
