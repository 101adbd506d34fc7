"""Programs that build a model from Detectron2's parts without a config, and override their methods; on both engines."""

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import FPN, GeneralizedRCNN, ResNet, StandardROIHeads, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, make_stage
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals, find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import flop_count_operators
from detectron2.utils.events import EventStorage

LEVELS = ["p2", "p3", "p4", "p5"]
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def resnet(**options):
    channels, stages = 8, []
    for index, width in enumerate((16, 24, 32, 40)):
        stride = 1 if index == 0 else 2
        blocks = ResNet.make_stage(
            BottleneckBlock,
            2,
            in_channels=channels,
            out_channels=width,
            bottleneck_channels=8,
            stride_per_block=[stride, 1],
            num_groups=2,
            norm="BN",
            stride_in_1x1=False,
        )
        stages.append(blocks)
        channels = width
    return ResNet(BasicStem(in_channels=3, out_channels=8, norm="BN"), stages, **options)


def fpn(top_block):
    bottom_up = resnet(out_features=["res2", "res3", "res4", "res5"])
    return FPN(
        bottom_up=bottom_up,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=16,
        norm="",
        top_block=top_block,
        fuse_type="sum",
    )


def rpn():
    return RPN(
        in_features=[*LEVELS, "p6"],
        head=StandardRPNHead(in_channels=16, num_anchors=3),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16], [32], [64], [128], [256]],
            aspect_ratios=[[0.5, 1.0, 2.0]],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=32,
        positive_fraction=0.5,
        pre_nms_topk=(100, 50),
        post_nms_topk=(40, 20),
        nms_thresh=0.7,
    )


def predictor(kind=FastRCNNOutputLayers):
    transform = Box2BoxTransform(weights=(10, 10, 5, 5))
    return kind(
        ShapeSpec(channels=24), box2box_transform=transform, num_classes=3, test_topk_per_image=5, loss_weight=2.0
    )


def heads(kind=StandardROIHeads, box_predictor=None, mask_head=None):
    return kind(
        num_classes=3,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
        box_in_features=LEVELS,
        box_pooler=ROIPooler(7, SCALES, 0, "ROIAlignV2"),
        box_head=FastRCNNConvFCHead(ShapeSpec(channels=16, height=7, width=7), conv_dims=[8], fc_dims=[24]),
        box_predictor=box_predictor or predictor(),
        mask_in_features=LEVELS,
        mask_pooler=ROIPooler(14, SCALES, 0, "ROIAlignV2"),
        mask_head=mask_head
        or MaskRCNNConvUpsampleHead(ShapeSpec(channels=16, height=14, width=14), num_classes=3, conv_dims=[8, 8]),
    )


def model(roi_heads):
    return GeneralizedRCNN(
        backbone=fpn(LastLevelMaxPool()),
        proposal_generator=rpn(),
        roi_heads=roi_heads,
        pixel_mean=[103.5, 116.3, 123.7],
        pixel_std=[57.0, 57.0, 57.0],
        input_format="BGR",
    )


def losses_and_detections(roi_heads, narrow):
    torch.manual_seed(0)
    built = model(roi_heads)
    with EventStorage():
        losses = built.train()(narrow.inputs())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    return losses, built.eval()(narrow.inputs())[0]["instances"]


def test_a_whole_model(narrow):
    losses, detections = losses_and_detections(heads(), narrow)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert len(detections) == 5 and detections.pred_masks.shape[1:] == detections.image_size


def test_no_images():
    box_predictor = FastRCNNOutputLayers(4, box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)), num_classes=3)
    predictions = [torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)]
    losses = box_predictor.losses(predictions, [])
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert all(tensor.grad is not None for tensor in predictions)
    assert box_predictor.inference(predictions, []) == ([], [])


@pytest.mark.parametrize(("depth", "channels"), [(18, 64), (34, 64), (50, 256)])
def test_default_stages(depth, channels):
    stages = ResNet.make_default_stages(depth, norm="BN")
    shallow = ResNet(BasicStem(), stages, out_features=["res2", "res3"])
    features = shallow(torch.zeros(1, 3, 64, 64))
    assert [tuple(feature.shape) for feature in features.values()] == [(1, channels, 16, 16), (1, 2 * channels, 8, 8)]
    assert not hasattr(shallow, "res4")


def test_initial_weights_do_not_depend_on_which_stages_are_used():
    cfg = get_cfg()
    for out_features in (["res4"], ["res2"], ["res5"]):
        cfg.MODEL.RESNETS.OUT_FEATURES = out_features
        torch.manual_seed(0)
        build_backbone(cfg)
        assert torch.rand(1).item() == pytest.approx(0.29391467571258545)


def test_anchors_of_lists_that_are_not_nested():
    generator = DefaultAnchorGenerator(sizes=[32, 64], aspect_ratios=[0.25, 1, 4], strides=[4])
    (anchors,) = generator([torch.zeros(1, 1, 1, 2)])
    assert generator.num_anchors == [6]
    assert anchors.tensor[[0, 7]].tolist() == [[-30, -6, 34, 10], [-10, -10 - 4, 22, 18]]


def test_proposals_of_boxes():
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [5.0, 5.0, 20.0, 9.0]]])
    logits = torch.tensor([[1.0, 2.0, float("inf")]])
    (proposals,) = find_top_rpn_proposals([boxes], [logits], [(10, 10)], 0.5, 1000, 1000, 0, False)
    assert proposals.objectness_logits.tolist() == [2.0]
    with pytest.raises(FloatingPointError):
        find_top_rpn_proposals([boxes], [logits], [(10, 10)], 0.5, 1000, 1000, 0, True)


def test_ground_truth_among_proposals():
    proposals = Instances((10, 10), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0))
    gt = Boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    (extended,) = add_ground_truth_to_proposals([gt], [proposals])
    assert extended.proposal_boxes.tensor.tolist() == [[0, 0, 1, 1]]
    proposals.custom = torch.zeros(0)
    with pytest.raises(AssertionError):
        add_ground_truth_to_proposals([gt], [proposals])
    target = Instances((10, 10), gt_boxes=gt, custom=torch.tensor([3.0]), other=torch.tensor([5.0]))
    assert add_ground_truth_to_proposals([target], [proposals])[0].custom.tolist() == [3.0]


def test_operations_of_a_whole_model_are_counted():
    inputs = [{"image": torch.zeros(3, 64, 64)}]
    assert 0.001 < flop_count_operators(model(heads()), inputs)["conv"] < 0.1


def test_classifier_and_stages():
    classifier = resnet(num_classes=7)
    assert classifier(torch.zeros(2, 3, 64, 64))["linear"].shape == (2, 7)
    assert all(not p.requires_grad for p in resnet(freeze_at=1).stem.parameters())
    assert make_stage(BottleneckBlock, 0, in_channels=4, out_channels=8, bottleneck_channels=4) == []
    assert all(isinstance(block, CNNBlockBase) for block in resnet(out_features=["res3"]).res3)


@pytest.mark.parametrize(
    ("top_block", "names"),
    [
        (None, LEVELS),
        (LastLevelMaxPool(), [*LEVELS, "p6"]),
        (LastLevelP6P7(40, 16), [*LEVELS, "p6", "p7"]),
        (LastLevelP6P7(16, 16, "p5"), [*LEVELS, "p6", "p7"]),
    ],
)
def test_top_blocks(top_block, names):
    backbone = fpn(top_block)
    features = backbone(torch.zeros(1, 3, 128, 128))
    assert list(features) == list(backbone.output_shape()) == names
    assert [128 // feature.shape[2] for feature in features.values()] == [
        shape.stride for shape in backbone.output_shape().values()
    ]


class HalvedPredictor(FastRCNNOutputLayers):
    def losses(self, predictions, proposals):
        return {name: loss / 2 for name, loss in super().losses(predictions, proposals).items()}

    def inference(self, predictions, proposals):
        instances, kept = super().inference(predictions, proposals)
        return [item[:2] for item in instances], [indices[:2] for indices in kept]


class TwoLayers(BaseMaskRCNNHead):
    def __init__(self):
        super().__init__(loss_weight=0.5)
        self.first, self.last = nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def layers(self, x):
        return self.last(torch.relu(self.first(x)))


class CountingHeads(StandardROIHeads):
    sampled = boxes = masks = 0

    def label_and_sample_proposals(self, proposals, targets):
        labeled = super().label_and_sample_proposals(proposals, targets)
        foreground, selected = select_foreground_proposals(labeled, self.num_classes)
        assert all(item.has("gt_masks") for item in labeled if len(item.gt_classes) and item.has("gt_boxes"))
        assert [len(item) for item in foreground] == [int(mask.sum()) for mask in selected]
        self.sampled += 1
        return labeled

    def _forward_box(self, features, proposals):
        self.boxes += 1
        return super()._forward_box(features, proposals)

    def _forward_mask(self, features, instances):
        self.masks += 1
        return super()._forward_mask(features, instances)


def test_overridden_methods_are_called(narrow):
    roi_heads = heads(CountingHeads, predictor(HalvedPredictor), TwoLayers())
    losses, detections = losses_and_detections(roi_heads, narrow)
    assert (roi_heads.sampled, roi_heads.boxes, roi_heads.masks) == (1, 2, 2)
    assert len(detections) == 2 and detections.pred_masks.shape[1:] == detections.image_size
    assert losses["loss_mask"].item() == pytest.approx(0.35, abs=0.1)  # half of log 2
