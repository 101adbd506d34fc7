"""Export trained models: the whole detector in one file that runs without this package."""

from d2_maskrcnn.exporters.export import FORMATS, export, quantize

__all__ = ["FORMATS", "export", "quantize"]
