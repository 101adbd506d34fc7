"""Mask R-CNN, all of its numerics. Importing this package registers its parts in Detectron2's registries.

The names are those in :data:`d2_maskrcnn.config.COMPONENTS`.
"""

from d2_maskrcnn.modeling.backbone.fpn import FPN, build_maskrcnn_resnet_fpn_backbone
from d2_maskrcnn.modeling.intermediates import Stages, active_stages, record_stages
from d2_maskrcnn.modeling.meta_arch import MaskRCNN
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictor, MaskRCNNBoxHead
from d2_maskrcnn.modeling.roi_heads.mask_head import MaskRCNNMaskHead
from d2_maskrcnn.modeling.roi_heads.roi_heads import MaskRCNNROIHeads
from d2_maskrcnn.modeling.rpn.anchor_generator import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.rpn import MaskRCNNRPN, MaskRCNNRPNHead

__all__ = [
    "FPN",
    "BoxPredictor",
    "MaskRCNN",
    "MaskRCNNAnchorGenerator",
    "MaskRCNNBoxHead",
    "MaskRCNNMaskHead",
    "MaskRCNNROIHeads",
    "MaskRCNNRPN",
    "MaskRCNNRPNHead",
    "Stages",
    "active_stages",
    "build_maskrcnn_resnet_fpn_backbone",
    "record_stages",
]
