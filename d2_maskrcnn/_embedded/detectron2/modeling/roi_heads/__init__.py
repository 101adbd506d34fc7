"""ROI heads, which process proposals: registries, and construction from a config."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

__all__ = [
    "ROI_BOX_HEAD_REGISTRY",
    "ROI_HEADS_REGISTRY",
    "ROI_KEYPOINT_HEAD_REGISTRY",
    "ROI_MASK_HEAD_REGISTRY",
    "build_box_head",
    "build_mask_head",
    "build_roi_heads",
]

__getattr__ = lookup(__name__)

# Classes or functions of (cfg, input_shape) that return a module:
# (images, features, proposals, ground truth) -> (instances, losses);
ROI_HEADS_REGISTRY = Registry("ROI_HEADS")
# pooled features -> features for classes and boxes;
ROI_BOX_HEAD_REGISTRY = Registry("ROI_BOX_HEAD")
# (pooled features, instances) -> losses, or instances with `pred_masks`.
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
# This engine has no such heads; programs register their own.
ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """Build the ROI heads named ``MODEL.ROI_HEADS.NAME``.

    Raises:
        KeyError: the name is not registered.
    """
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def build_box_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build the box head named ``MODEL.ROI_BOX_HEAD.NAME`` for pooled features of this shape.

    Raises:
        KeyError: the name is not registered.
    """
    return ROI_BOX_HEAD_REGISTRY.get(cfg.MODEL.ROI_BOX_HEAD.NAME)(cfg, input_shape)


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Build the mask head named ``MODEL.ROI_MASK_HEAD.NAME`` for pooled features of this shape.

    Raises:
        KeyError: the name is not registered.
    """
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
