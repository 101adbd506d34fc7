"""Multi-object tracking: a motion model, the similarity of boxes and masks, and an assignment solver."""

from d2_maskrcnn.tracking.tracker import Tracker

__all__ = ["Tracker"]
