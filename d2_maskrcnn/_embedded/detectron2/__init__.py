"""The embedded engine: an independently written subset of Detectron2's API.

It stands in for Detectron2 where none is installed; ``d2_maskrcnn`` puts it on ``sys.path`` under this name. Only
what training, evaluating and running this project's Mask R-CNN needs is here, and importing this package imports
nothing heavy.
"""

__version__ = "0.6+embedded"
