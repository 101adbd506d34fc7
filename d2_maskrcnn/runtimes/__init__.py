"""Run exported detectors (ONNX, OpenVINO, torch.export) in place of a PyTorch model."""

from d2_maskrcnn.runtimes.exported_model import ExportedModel, load_exported, read_info
from d2_maskrcnn.runtimes.metadata import SUFFIXES, FileInfo, is_exported

__all__ = ["SUFFIXES", "ExportedModel", "FileInfo", "is_exported", "load_exported", "read_info"]
