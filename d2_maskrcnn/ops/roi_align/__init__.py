"""ROIAlign over all levels of a feature pyramid."""

from d2_maskrcnn.ops.roi_align.operator import multilevel_roi_align
from d2_maskrcnn.ops.roi_align.pooler import ROIPooler

__all__ = ["ROIPooler", "multilevel_roi_align"]
