"""The registry of the region proposal network's heads."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape), that give a module: feature maps -> objectness logits and
# anchor deltas.
RPN_HEAD_REGISTRY = Registry("RPN_HEAD")


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """The head named ``MODEL.RPN.HEAD_NAME`` for feature maps of these shapes.

    Raises:
        KeyError: no such name is registered.
    """
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)


__getattr__ = lookup(__name__)
