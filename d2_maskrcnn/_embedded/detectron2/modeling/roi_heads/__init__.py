"""What is done with each proposal by itself."""

from detectron2._names import lookup
from detectron2.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY, build_box_head
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, build_mask_head
from detectron2.modeling.roi_heads.roi_heads import ROI_HEADS_REGISTRY, build_roi_heads
from detectron2.utils.registry import Registry

# Components that this engine lacks; programs register their own.
ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")

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
