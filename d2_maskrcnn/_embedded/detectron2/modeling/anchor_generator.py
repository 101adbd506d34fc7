"""The registry of anchor generators."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape); what they give maps feature maps to one Boxes for each.
ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The anchor generator named ``MODEL.ANCHOR_GENERATOR.NAME`` for feature maps of these shapes.

    Raises:
        KeyError: no such name is registered.
    """
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


__getattr__ = lookup(__name__)
