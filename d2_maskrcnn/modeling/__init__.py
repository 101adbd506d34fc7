"""Mask R-CNN. Importing this package registers its components in Detectron2's registries.

The registered names are those in :data:`d2_maskrcnn.config.COMPONENTS`.
"""

from d2_maskrcnn.modeling import registry_aliases  # noqa: F401 - registers Detectron2's names on the embedded engine
from d2_maskrcnn.modeling.backbone.fpn import FPN, build_maskrcnn_resnet_fpn_backbone
from d2_maskrcnn.modeling.intermediates import Intermediates, trace_inference, trace_losses
from d2_maskrcnn.modeling.meta_arch import MaskRCNN
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictor, MaskRCNNBoxHead
from d2_maskrcnn.modeling.roi_heads.mask_head import MaskRCNNMaskHead
from d2_maskrcnn.modeling.roi_heads.roi_heads import MaskRCNNROIHeads
from d2_maskrcnn.modeling.rpn.anchor_generator import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.rpn import MaskRCNNRPN, MaskRCNNRPNHead

__all__ = [
    "FPN",
    "BoxPredictor",
    "Intermediates",
    "MaskRCNN",
    "MaskRCNNAnchorGenerator",
    "MaskRCNNBoxHead",
    "MaskRCNNMaskHead",
    "MaskRCNNROIHeads",
    "MaskRCNNRPN",
    "MaskRCNNRPNHead",
    "build_maskrcnn_resnet_fpn_backbone",
    "trace_inference",
    "trace_losses",
]
