"""The registry of mask heads."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape), that give a module: (pooled features, instances) -> losses, or
# instances with `pred_masks`.
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """The mask head named ``MODEL.ROI_MASK_HEAD.NAME`` for pooled features of this shape.

    Raises:
        KeyError: no such name is registered.
    """
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)


__getattr__ = lookup(__name__)
