import importlib

import pytest
import torch
from torch import nn

from detectron2 import modeling
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

# registry, its home in Detectron2, key of the name in the config, build function
TABLE = [
    ("META_ARCH_REGISTRY", "meta_arch.build", "MODEL.META_ARCHITECTURE", "build_model"),
    ("BACKBONE_REGISTRY", "backbone.build", "MODEL.BACKBONE.NAME", "build_backbone"),
    ("ANCHOR_GENERATOR_REGISTRY", "anchor_generator", "MODEL.ANCHOR_GENERATOR.NAME", "build_anchor_generator"),
    (
        "PROPOSAL_GENERATOR_REGISTRY",
        "proposal_generator.build",
        "MODEL.PROPOSAL_GENERATOR.NAME",
        "build_proposal_generator",
    ),
    ("RPN_HEAD_REGISTRY", "proposal_generator.rpn", "MODEL.RPN.HEAD_NAME", "build_rpn_head"),
    ("ROI_HEADS_REGISTRY", "roi_heads.roi_heads", "MODEL.ROI_HEADS.NAME", "build_roi_heads"),
    ("ROI_BOX_HEAD_REGISTRY", "roi_heads.box_head", "MODEL.ROI_BOX_HEAD.NAME", "build_box_head"),
    ("ROI_MASK_HEAD_REGISTRY", "roi_heads.mask_head", "MODEL.ROI_MASK_HEAD.NAME", "build_mask_head"),
]


class Part(Backbone):
    """A component that stores its constructor's arguments."""

    def __init__(self, cfg, input_shape=None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.called_with = cfg, input_shape
        self._out_features = ["a", "b"]
        self._out_feature_channels = {"a": 8, "b": 16}
        self._out_feature_strides = {"a": 4, "b": 8}

    def forward(self, x):
        return {"a": x}


@pytest.fixture
def registered():
    """Register Part in every registry, and remove it again."""
    registries = [getattr(modeling, row[0]) for row in TABLE]
    for registry in registries:
        registry.register(Part)
    yield
    for registry in registries:
        del registry._obj_map["Part"]


def cfg_naming(key, name):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", key, name])
    return cfg


@pytest.mark.parametrize(("registry", "home", "key", "build"), TABLE)
def test_builds_what_the_config_names(registered, registry, home, key, build):
    cfg = cfg_naming(key, "Part")
    arguments = [] if build == "build_model" else [ShapeSpec(channels=4)]
    part = getattr(modeling, build)(cfg, *arguments)
    assert isinstance(part, Part)
    assert part.called_with == (cfg, *(arguments or [None]))


@pytest.mark.parametrize(("registry", "home", "key", "build"), TABLE)
def test_unknown_name(registered, registry, home, key, build):
    arguments = [] if build == "build_model" else [ShapeSpec(channels=4)]
    with pytest.raises(KeyError) as caught:
        getattr(modeling, build)(cfg_naming(key, "Parrt"), *arguments)
    message = str(caught.value)
    assert "'Parrt'" in message
    assert registry.removesuffix("_REGISTRY") in message
    assert "Did you mean 'Part'?" in message


@pytest.mark.parametrize(("registry", "home", "key", "build"), TABLE)
def test_registries_lie_where_detectron2_has_them(registry, home, key, build):
    module = importlib.import_module(f"detectron2.modeling.{home}")
    package = importlib.import_module("detectron2.modeling." + home.split(".")[0])
    for name in (registry, build):
        assert getattr(module, name) is getattr(package, name) is getattr(modeling, name)


def test_backbone_gets_the_images_channels(registered):
    cfg = cfg_naming("MODEL.BACKBONE.NAME", "Part")
    assert modeling.build_backbone(cfg).called_with == (cfg, ShapeSpec(channels=3))


def test_backbone_must_be_one():
    def build_nothing(cfg, input_shape):
        return nn.Identity()

    modeling.BACKBONE_REGISTRY.register(build_nothing)
    try:
        with pytest.raises(TypeError, match=r"build_nothing.*Identity"):
            modeling.build_backbone(cfg_naming("MODEL.BACKBONE.NAME", "build_nothing"))
    finally:
        del modeling.BACKBONE_REGISTRY._obj_map["build_nothing"]


def test_backbone_interface():
    part = Part(None)
    assert part.size_divisibility == 0
    assert part.padding_constraints == {}
    assert part.output_shape() == {"a": ShapeSpec(channels=8, stride=4), "b": ShapeSpec(channels=16, stride=8)}
    with pytest.raises(TypeError, match="abstract"):
        Backbone()


def test_model_is_moved_to_its_device(registered):
    cfg = cfg_naming("MODEL.META_ARCHITECTURE", "Part")
    cfg.MODEL.DEVICE = "meta"
    assert modeling.build_model(cfg).weight.device.type == "meta"


def test_precomputed_proposals_need_no_generator():
    cfg = cfg_naming("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    assert modeling.build_proposal_generator(cfg, {}) is None
