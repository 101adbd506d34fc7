"""Operators: ROIAlign over all levels of a feature pyramid, and the pooler module that uses it."""

from d2_maskrcnn.ops.roi_align import ROIPooler, free_unused_buffers, multilevel_roi_align

__all__ = ["ROIPooler", "free_unused_buffers", "multilevel_roi_align"]
