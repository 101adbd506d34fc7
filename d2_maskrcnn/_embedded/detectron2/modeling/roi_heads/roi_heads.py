"""The registry of ROI heads: everything that happens to proposals."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape), that give a module: (images, features, proposals, ground truth)
# -> (instances, losses).
ROI_HEADS_REGISTRY = Registry("ROI_HEADS")


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The ROI heads named ``MODEL.ROI_HEADS.NAME``.

    Raises:
        KeyError: no such name is registered.
    """
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


__getattr__ = lookup(__name__)
