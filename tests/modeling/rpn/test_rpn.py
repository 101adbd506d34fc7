import pytest
import torch

from d2_maskrcnn.modeling import MaskRCNNRPN, MaskRCNNRPNHead
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

SHAPES = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in (2, 3, 4, 5, 6)}


def rpn(narrow, **overrides):
    torch.manual_seed(0)
    return build_proposal_generator(narrow.cfg(**overrides), SHAPES)


def features(size=64):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, 16, size // s.stride, size // s.stride, generator=generator) for name, s in SHAPES.items()
    }


def images(size=64):
    return ImageList(torch.zeros(2, 3, size, size), [(size, size), (size - 8, size)])


def ground_truth(*boxes, size=64):
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


@pytest.mark.parametrize(
    "targets",
    [
        [ground_truth(), ground_truth()],
        [ground_truth([4, 4, 20, 20]), ground_truth()],
        [ground_truth([4, 4, 20, 20], [30, 30, 60, 62]), ground_truth([1, 1, 50, 50])],
    ],
    ids=["no objects", "objects in one image", "objects in both"],
)
def test_losses_and_gradients(narrow, targets):
    model = rpn(narrow)
    proposals, losses = model(images(), features(), targets)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"} and len(proposals) == 2
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert (losses["loss_rpn_loc"].item() == 0) == all(len(t) == 0 for t in targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_inference_gives_no_losses(narrow):
    proposals, losses = rpn(narrow).eval()(images(), features())
    assert losses == {}
    for item, size in zip(proposals, images().image_sizes, strict=True):
        assert item.image_size == size and 0 < len(item) <= 100
        boxes = item.proposal_boxes.tensor
        assert boxes.min() >= 0 and boxes[:, 3].max() <= size[0]


def test_ground_truth_selects_the_training_settings_in_any_mode(narrow):
    model = rpn(
        narrow, MODEL__RPN__POST_NMS_TOPK_TRAIN=7, MODEL__RPN__POST_NMS_TOPK_TEST=5, MODEL__RPN__NMS_THRESH=0.99
    )
    assert [len(p) for p in model.eval()(images(), features(), [ground_truth(), ground_truth()])[0]] == [7, 7]
    assert [len(p) for p in model.eval()(images(), features())[0]] == [5, 5]


def test_labels_by_hand(narrow):
    """Compute every anchor's label from its IoU with the ground-truth box."""
    model = rpn(narrow)
    box = [8.0, 8.0, 24.0, 24.0]
    output = model.propose(images().image_sizes, features(), [ground_truth(box), ground_truth()])
    anchors, labels = torch.cat(output.anchors), output.labels[0].labels
    ious = []
    for x0, y0, x1, y1 in anchors.tolist():
        inner = max(min(x1, box[2]) - max(x0, box[0]), 0) * max(min(y1, box[3]) - max(y0, box[1]), 0)
        ious.append(inner / ((x1 - x0) * (y1 - y0) + 256 - inner))
    for iou, label in zip(ious, labels.tolist(), strict=True):
        assert label == (1 if iou >= 0.7 or iou == max(ious) else 0 if iou < 0.3 else -1)
    assert bool((output.labels[1].labels == 0).all())


def test_boundary_threshold_ignores_anchors_outside(narrow):
    model = rpn(narrow, MODEL__RPN__BOUNDARY_THRESH=0)
    output = model.propose(images().image_sizes, features(), [ground_truth([8, 8, 24, 24]), ground_truth()])
    anchors, (first, second) = torch.cat(output.anchors), output.labels
    outside = (anchors[:, :2] < 0).any(1) | (anchors[:, 2:] >= 64).any(1)
    assert bool((first.labels[outside] == -1).all()) and bool((second.labels[~outside] == 0).all())


def test_sampling(narrow):
    model = rpn(narrow, MODEL__RPN__BATCH_SIZE_PER_IMAGE=10, MODEL__RPN__POSITIVE_FRACTION=0.5)
    with EventStorage() as storage:
        output = model.propose(images().image_sizes, features(), [ground_truth([8, 8, 24, 24]), ground_truth()])
    sampled = [image.sampled for image in output.labels]
    assert [int((s >= 0).sum()) for s in sampled] == [10, 10]
    positives = int((sampled[0] == 1).sum())
    assert 1 <= positives <= 5 and int((sampled[1] == 1).sum()) == 0
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"rpn/num_pos_anchors": positives / 2, "rpn/num_neg_anchors": (20 - positives) / 2}


def test_sampling_with_a_generator(narrow):
    model = rpn(narrow, MODEL__RPN__BATCH_SIZE_PER_IMAGE=10)
    sampled = []
    for seed in (0, 0, 1):
        output = model.propose(
            images().image_sizes, features(), [ground_truth(), ground_truth()], torch.Generator().manual_seed(seed)
        )
        sampled.append(output.labels[0].sampled.tolist())
    assert sampled[0] == sampled[1] != sampled[2]


def test_no_events_in_evaluation_mode(narrow):
    with EventStorage() as storage:
        rpn(narrow).eval()(images(), features(), [ground_truth([8, 8, 24, 24]), ground_truth()])
        assert storage.latest() == {}


def test_loss_weights(narrow):
    targets = [ground_truth([8, 8, 24, 24]), ground_truth([1, 1, 50, 50])]
    plain = rpn(narrow)(images(), features(), targets)[1]
    weighted = rpn(narrow, MODEL__RPN__LOSS_WEIGHT=2.0, MODEL__RPN__BBOX_REG_LOSS_WEIGHT=3.0)(
        images(), features(), targets
    )[1]
    assert weighted["loss_rpn_cls"].item() == pytest.approx(2 * plain["loss_rpn_cls"].item())
    assert weighted["loss_rpn_loc"].item() == pytest.approx(6 * plain["loss_rpn_loc"].item())


def test_non_finite_boxes(narrow):
    model = rpn(narrow)
    with torch.no_grad():
        model.rpn_head.anchor_deltas.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        model(images(), features(), [ground_truth([8, 8, 24, 24]), ground_truth()])
    assert [len(p) for p in model(images(), features())[0]] == [0, 0]


@pytest.mark.parametrize(
    ("dims", "names", "width"),
    [((-1,), ["conv"], 16), ((24,), ["conv"], 24), ((-1, 24, -1), ["conv.conv0", "conv.conv1", "conv.conv2"], 24)],
)
def test_head(dims, names, width):
    torch.manual_seed(0)
    head = MaskRCNNRPNHead(in_channels=16, num_anchors=3, conv_dims=dims)
    expected = [*names, "objectness_logits", "anchor_deltas"]
    assert list(head.state_dict()) == [f"{name}.{part}" for name in expected for part in ("weight", "bias")]
    assert head.objectness_logits.weight.shape == (3, width, 1, 1)
    logits, deltas = head([torch.randn(2, 16, 4, 6), torch.randn(2, 16, 2, 3)])
    assert [tuple(x.shape) for x in logits] == [(2, 3, 4, 6), (2, 3, 2, 3)]
    assert [tuple(x.shape) for x in deltas] == [(2, 12, 4, 6), (2, 12, 2, 3)]
    for name, parameter in head.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().sum() == 0
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1)


def test_logits_belong_to_their_anchors(narrow):
    """Flatten the outputs of a head that predicts each output's own index: the order must be that of the anchors."""
    model = rpn(narrow)
    assert isinstance(model, MaskRCNNRPN)
    height, width = 4, 6

    class Positions(torch.nn.Module):
        def forward(self, levels):
            logits = torch.arange(3 * height * width).view(1, 3, height, width).float()
            deltas = torch.arange(12 * height * width).view(1, 12, height, width).float()
            return [logits] * len(levels), [deltas] * len(levels)

    model.rpn_head = Positions()
    output = model.propose([(16, 24)], {name: torch.zeros(1, 16, height, width) for name in SHAPES})
    for a in range(3):
        for y in range(height):
            for x in range(width):
                row = (y * width + x) * 3 + a
                assert output.logits[0][0, row] == (a * height + y) * width + x
                assert output.deltas[0][0, row].tolist() == [((4 * a + k) * height + y) * width + x for k in range(4)]
