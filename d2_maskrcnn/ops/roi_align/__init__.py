"""ROIAlign over all levels of a feature pyramid."""

from d2_maskrcnn.ops.roi_align.memory import free_unused_buffers
from d2_maskrcnn.ops.roi_align.operator import multilevel_roi_align
from d2_maskrcnn.ops.roi_align.pooler import ROIPooler

__all__ = ["ROIPooler", "free_unused_buffers", "multilevel_roi_align"]
