"""Operators: ROIAlign over all pyramid levels, and the pooler that a model uses it through."""

from d2_maskrcnn.ops.roi_align import ROIPooler, multilevel_roi_align

__all__ = ["ROIPooler", "multilevel_roi_align"]
