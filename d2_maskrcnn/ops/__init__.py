"""Operators of our own: ROIAlign over all pyramid levels, and the module that a model uses it through."""

from d2_maskrcnn.ops.pooler import ROIPooler
from d2_maskrcnn.ops.roi_align import multilevel_roi_align

__all__ = ["ROIPooler", "multilevel_roi_align"]
