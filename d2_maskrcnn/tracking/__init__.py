"""Following objects through a video: a motion model, likeness of boxes and masks, and an assignment solver."""

from d2_maskrcnn.tracking.tracker import Tracker

__all__ = ["Tracker"]
