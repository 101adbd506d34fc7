"""Programs that use Detectron2's component names and interfaces; the same tests run on both engines."""

import pytest
import torch
from torch import nn

import d2_maskrcnn
from d2_maskrcnn.config import COMPONENTS, add_d2_maskrcnn_config, use_d2_maskrcnn_components
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling import MaskRCNN
from detectron2.config import configurable, get_cfg
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    build_model,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

EMBEDDED = d2_maskrcnn.engine_info().name == "embedded"
ZOO_NAMES = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
}


def zoo_cfg(narrow, **names):
    """Return a narrow config without the plugin's node, with Detectron2's component names except for ``names``."""
    cfg = get_cfg()
    for key in ("MODEL", "TEST"):
        cfg[key] = narrow.cfg(ours=False)[key]
    cfg.merge_from_list([item for pair in ZOO_NAMES.items() for item in pair])
    cfg.merge_from_list([item for key, value in names.items() for item in (key.replace("__", "."), value)])
    return cfg


@BACKBONE_REGISTRY.register()
class UserBackbone(Backbone):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.stem = Conv2d(3, 16, 7, stride=4, padding=3)
        self.down = nn.ModuleList(Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(4))

    def forward(self, image):
        features = {"p2": self.stem(image)}
        for level, layer in enumerate(self.down, 3):
            features[f"p{level}"] = layer(features[f"p{level - 1}"])
        return features

    def output_shape(self):
        return {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in range(2, 7)}


@ROI_BOX_HEAD_REGISTRY.register()
class PoolingBoxHead(nn.Module):
    @configurable
    def __init__(self, input_shape, *, dim):
        super().__init__()
        self.fc, self.dim = nn.Linear(input_shape.channels, dim), dim

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {"input_shape": input_shape, "dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM}

    @property
    def output_shape(self):
        return ShapeSpec(channels=self.dim)

    def forward(self, x):
        return torch.relu(self.fc(x.mean(dim=(2, 3))))


@ROI_MASK_HEAD_REGISTRY.register()
class UserMaskHead(nn.Module):
    """A mask head with Detectron2's interface: the mode decides between losses and masks."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.predictor = nn.Conv2d(input_shape.channels, 1, 1)

    def forward(self, x, instances):
        logits = self.predictor(x)
        if self.training:
            assert all(item.has("gt_masks") for item in instances if len(item))
            return {"loss_mask": logits.square().mean() if len(logits) else logits.sum()}
        for item, masks in zip(instances, logits.sigmoid().split([len(item) for item in instances]), strict=True):
            item.pred_masks = masks
        return instances


@META_ARCH_REGISTRY.register()
class CountingRCNN(GeneralizedRCNN):
    calls = 0

    def forward(self, batched_inputs):
        self.calls += 1
        return super().forward(batched_inputs)


def train_step(model, inputs):
    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    return set(losses)


def test_the_table_covers_every_component():
    assert ZOO_NAMES.keys() == COMPONENTS.keys()


def test_zoo_names_build_the_model_of_this_engine(narrow):
    model = build_model(zoo_cfg(narrow))
    assert isinstance(model, GeneralizedRCNN)
    assert isinstance(model, MaskRCNN) == EMBEDDED


def test_both_names_build_the_same_parameters(narrow):
    cfg = zoo_cfg(narrow)
    theirs = build_model(cfg)
    add_d2_maskrcnn_config(cfg)
    use_d2_maskrcnn_components(cfg)
    ours = build_model(cfg)
    shapes = [{name: value.shape for name, value in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_inference_step_by_step(narrow):
    model, inputs = narrow.fill(build_model(zoo_cfg(narrow))).eval(), narrow.inputs()
    assert model.device == torch.device("cpu") and model.input_format == "BGR"
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        detections, _ = model.roi_heads(images, features, proposals, None)
        whole = [output["instances"] for output in model.inference(inputs)]
        steps = [detector_postprocess(d, x["height"], x["width"]) for d, x in zip(detections, inputs, strict=True)]
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    for expected, actual in zip(whole, steps, strict=True):
        assert len(actual) == len(expected) > 0 and actual.image_size == expected.image_size
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(actual.pred_classes, expected.pred_classes)
        assert (actual.pred_masks != expected.pred_masks).sum() <= 1e-3 * expected.pred_masks.sum()


def test_user_backbone_and_box_head(narrow):
    names = {"MODEL__BACKBONE__NAME": "UserBackbone", "MODEL__ROI_BOX_HEAD__NAME": "PoolingBoxHead"}
    model = build_model(zoo_cfg(narrow, **names, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.0))
    assert type(model.backbone) is UserBackbone and type(model.roi_heads.box_head) is PoolingBoxHead
    detections = model.eval()(narrow.inputs())[0]["instances"]
    assert len(detections) > 0 and detections.pred_masks.shape[1:] == (128, 192)
    assert train_step(model, narrow.inputs()) == {
        "loss_rpn_cls",
        "loss_rpn_loc",
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
    }
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("heads", ["StandardROIHeads", "MaskRCNNROIHeads"])
def test_user_mask_head(narrow, heads):
    names = {"MODEL__ROI_MASK_HEAD__NAME": "UserMaskHead", "MODEL__ROI_HEADS__NAME": heads}
    model = narrow.fill(build_model(zoo_cfg(narrow, **names)))
    assert "loss_mask" in train_step(model, narrow.inputs())
    assert model.roi_heads.mask_head.predictor.weight.grad is not None
    detections = model.eval()(narrow.inputs())[0]["instances"]
    assert len(detections) > 0 and detections.pred_masks.shape[1:] == (128, 192)


@ROI_HEADS_REGISTRY.register()
class HeadsWithMaskHeadOfTheirOwn(StandardROIHeads):
    """Make the mask head after the constructor, as programs for older versions of Detectron2 do."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self._init_mask_head(cfg, input_shape)

    def _init_mask_head(self, cfg, input_shape):
        self.mask_on, self.mask_in_features = True, ["p2"]
        self.mask_pooler = ROIPooler(14, [1 / input_shape["p2"].stride], 0, "ROIAlignV2")
        self.mask_head = UserMaskHead(cfg, ShapeSpec(channels=input_shape["p2"].channels))


def test_mask_head_made_by_a_method_of_the_object(narrow):
    model = narrow.fill(build_model(zoo_cfg(narrow, MODEL__ROI_HEADS__NAME="HeadsWithMaskHeadOfTheirOwn")))
    assert "loss_mask" in train_step(model, narrow.inputs())
    assert model.eval()(narrow.inputs())[0]["instances"].pred_masks.shape[1:] == (128, 192)


def test_user_mask_heads_have_no_validation_loss(narrow):
    cfg = narrow.cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "UserMaskHead"
    model = build_model(cfg).eval()
    with pytest.raises(UserError, match=r"UserMaskHead .*D2_MASKRCNN\.VALIDATION_LOSS"):
        model.losses(narrow.inputs())


def test_user_meta_architecture_from_the_components(narrow):
    cfg, backbone = zoo_cfg(narrow), UserBackbone(None, None)
    rpn = build_proposal_generator(cfg, backbone.output_shape())
    heads = build_roi_heads(cfg, backbone.output_shape())
    images = ImageList.from_tensors([item["image"].float() / 255 for item in narrow.inputs()], 64)
    with torch.no_grad():
        features = backbone(images.tensor)
        proposals, losses = rpn.eval()(images, features, None)
        detections, _ = heads.eval()(images, features, proposals, None)
    assert losses == {} and len(detections) == 2 and detections[0].has("pred_masks")


def test_subclass_of_the_meta_architecture(narrow):
    model = build_model(zoo_cfg(narrow, MODEL__META_ARCHITECTURE="CountingRCNN")).eval()
    results = model([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])
    assert model.calls == 1
    assert results[0]["instances"].image_size == (32, 48)


@pytest.mark.skipif(not EMBEDDED, reason="an installed Detectron2 has its own classes")
def test_the_engine_exports_the_components(narrow):
    from detectron2.modeling import roi_heads
    from detectron2.modeling.meta_arch import GeneralizedRCNN as FromMetaArch
    from detectron2.modeling.roi_heads import FastRCNNOutputLayers

    assert FromMetaArch is MaskRCNN
    assert issubclass(roi_heads.StandardROIHeads, d2_maskrcnn.modeling.MaskRCNNROIHeads)
    logits, deltas = FastRCNNOutputLayers(zoo_cfg(narrow), ShapeSpec(channels=8))(torch.zeros(2, 8))
    assert logits.shape == (2, 4) and deltas.shape == (2, 12)
