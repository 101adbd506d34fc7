"""Drawing what was found, fast: on OpenCV and NumPy, in place, only where something is."""

from d2_maskrcnn.visualization.annotator import Annotator
from d2_maskrcnn.visualization.labels import LabelPainter
from d2_maskrcnn.visualization.palette import PALETTE, ColourBook

__all__ = ["PALETTE", "Annotator", "ColourBook", "LabelPainter"]
