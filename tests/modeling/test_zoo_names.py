import pytest
import torch

import d2_maskrcnn
from d2_maskrcnn.config import COMPONENTS, add_d2_maskrcnn_config, use_d2_maskrcnn_components
from d2_maskrcnn.modeling import MaskRCNN
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model

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


def small_cfg(names):
    cfg = get_cfg()
    cfg.merge_from_list([item for pair in names.items() for item in pair])
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
        + ["MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"], "MODEL.FPN.OUT_CHANNELS", 16]
        + ["MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]]
        + ["MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]]
        + ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]]
        + ["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_MASK_HEAD.NUM_CONV", 1]
    )
    return cfg


def test_the_table_covers_every_component():
    assert ZOO_NAMES.keys() == COMPONENTS.keys()


def test_the_zoos_names_build_this_engines_model():
    model = build_model(small_cfg(ZOO_NAMES))
    assert isinstance(model, GeneralizedRCNN)
    assert isinstance(model, MaskRCNN) == EMBEDDED


def test_both_names_build_the_same_parameters():
    theirs = build_model(small_cfg(ZOO_NAMES))
    cfg = small_cfg(ZOO_NAMES)
    add_d2_maskrcnn_config(cfg)
    use_d2_maskrcnn_components(cfg)
    ours = build_model(cfg)
    shapes = [{name: value.shape for name, value in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_a_subclass_of_the_architecture_is_built_from_the_config():
    @META_ARCH_REGISTRY.register()
    class CountingRCNN(GeneralizedRCNN):
        calls = 0

        def forward(self, batched_inputs):
            self.calls += 1
            return super().forward(batched_inputs)

    model = build_model(small_cfg({**ZOO_NAMES, "MODEL.META_ARCHITECTURE": "CountingRCNN"})).eval()
    with torch.no_grad():
        results = model([{"image": torch.zeros(3, 64, 96), "height": 32, "width": 48}])
    assert model.calls == 1
    assert results[0]["instances"].image_size == (32, 48)


@pytest.mark.skipif(not EMBEDDED, reason="an installed Detectron2 has its own classes")
def test_the_engine_gives_out_the_components_by_name():
    from detectron2.modeling import roi_heads
    from detectron2.modeling.meta_arch import GeneralizedRCNN as FromMetaArch

    assert FromMetaArch is MaskRCNN
    assert roi_heads.StandardROIHeads is d2_maskrcnn.modeling.MaskRCNNROIHeads
