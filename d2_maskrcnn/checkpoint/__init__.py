"""Weight files: safe reading, other programs' names, short reports, checkpoints written whole or not at all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2_maskrcnn.checkpoint.atomic import atomic_torch_save, atomic_write_text
from d2_maskrcnn.checkpoint.convert import Converted, convert_names
from d2_maskrcnn.checkpoint.readers import read_weights
from d2_maskrcnn.checkpoint.report import LoadReport, group_names
from d2_maskrcnn.checkpoint.safe_pickle import load_pickle

if TYPE_CHECKING:
    from d2_maskrcnn.checkpoint.checkpointer import MaskRCNNCheckpointer
    from d2_maskrcnn.checkpoint.download import fetch_weights

# These import detectron2. The embedded engine's own checkpointer reads files with the readers above, so importing this
# package must not import the engine.
_NEED_ENGINE = {"MaskRCNNCheckpointer": "checkpointer", "fetch_weights": "download"}

__all__ = [
    "Converted",
    "LoadReport",
    "MaskRCNNCheckpointer",
    "atomic_torch_save",
    "atomic_write_text",
    "convert_names",
    "fetch_weights",
    "group_names",
    "load_pickle",
    "read_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_ENGINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_ENGINE[name]}"), name)
