"""Mask R-CNN with a ResNet-FPN backbone as a Detectron2 plugin.

Importing this package chooses the engine (an installed Detectron2, or the embedded one) and registers the model's
components in Detectron2's registries. It must come before any ``from detectron2 ...``. It imports nothing heavy: each
name below is imported at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from d2_maskrcnn._bootstrap import EngineInfo, choose_engine, engine_info
from d2_maskrcnn._version import __version__
from d2_maskrcnn.errors import UserError, opencv_required

if TYPE_CHECKING:
    from d2_maskrcnn.config.keys import add_d2_maskrcnn_config
    from d2_maskrcnn.config.loading import load_config
    from d2_maskrcnn.engine.run import Training, evaluate, train
    from d2_maskrcnn.exporters import export
    from d2_maskrcnn.predictor import Predictor
    from d2_maskrcnn.results import Results
    from d2_maskrcnn.weights.checkpoint_files import save_weights

# Public name: the module that defines it.
_LAZY = {
    "Predictor": "d2_maskrcnn.predictor",
    "Results": "d2_maskrcnn.results",
    "Training": "d2_maskrcnn.engine.run",
    "add_d2_maskrcnn_config": "d2_maskrcnn.config.keys",
    "evaluate": "d2_maskrcnn.engine.run",
    "export": "d2_maskrcnn.exporters",
    "load_config": "d2_maskrcnn.config.loading",
    "save_weights": "d2_maskrcnn.weights.checkpoint_files",
    "train": "d2_maskrcnn.engine.run",
}
_SUBPACKAGES = ("config", "data", "example", "inspection", "modeling")

__all__ = [
    "EngineInfo",
    "Predictor",
    "Results",
    "Training",
    "UserError",
    "__version__",
    "add_d2_maskrcnn_config",
    "engine_info",
    "evaluate",
    "export",
    "load_config",
    "save_weights",
    "train",
]

choose_engine()


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with opencv_required():
        return getattr(importlib.import_module(_LAZY[name]), name)
