"""Drawing of detections, scenes and charts; nothing else in the package draws."""

from d2_maskrcnn.visualization.annotator import Annotator
from d2_maskrcnn.visualization.palette import PALETTE

__all__ = ["PALETTE", "Annotator"]
