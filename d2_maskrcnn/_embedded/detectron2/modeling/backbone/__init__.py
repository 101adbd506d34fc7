"""Networks from images to feature maps."""

from detectron2._names import lookup
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

__getattr__ = lookup(__name__)
