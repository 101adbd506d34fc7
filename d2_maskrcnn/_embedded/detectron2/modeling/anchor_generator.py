"""Anchor generators: the registry, and construction from a config."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions of (cfg, input_shape) that return a module: feature maps -> one Boxes per map.
ANCHOR_GENERATOR_REGISTRY = Registry("ANCHOR_GENERATOR")


def build_anchor_generator(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the anchor generator named ``MODEL.ANCHOR_GENERATOR.NAME`` for feature maps of these shapes.

    Raises:
        KeyError: the name is not registered.
    """
    return ANCHOR_GENERATOR_REGISTRY.get(cfg.MODEL.ANCHOR_GENERATOR.NAME)(cfg, input_shape)


__getattr__ = lookup(__name__)
