"""The registry of backbones."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape), that give a Backbone.
BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """The backbone named ``MODEL.BACKBONE.NAME``.

    Args:
        cfg: the config.
        input_shape: of the images; None: as many channels as ``MODEL.PIXEL_MEAN`` has values.

    Raises:
        KeyError: no such name is registered.
        TypeError: what is registered under it gives no :class:`Backbone`.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"MODEL.BACKBONE.NAME {name!r} made a {type(backbone).__name__}, which is no Backbone")
    return backbone
