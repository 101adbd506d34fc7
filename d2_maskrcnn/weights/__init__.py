"""Read and write weight files: formats, safe loading, parameter names, reports, atomic writes. No engine needed."""

from d2_maskrcnn.weights.atomic import atomic_torch_save, atomic_write_text
from d2_maskrcnn.weights.comparison import LoadReport
from d2_maskrcnn.weights.download import fetch_weights
from d2_maskrcnn.weights.names import Converted, convert_names, group_names
from d2_maskrcnn.weights.readers import read_weights
from d2_maskrcnn.weights.safe_pickle import load_pickle

__all__ = [
    "Converted",
    "LoadReport",
    "atomic_torch_save",
    "atomic_write_text",
    "convert_names",
    "fetch_weights",
    "group_names",
    "load_pickle",
    "read_weights",
]
