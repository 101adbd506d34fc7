"""Mask R-CNN with a ResNet-FPN backbone as a Detectron2 plugin.

Importing this package chooses the engine (an installed Detectron2, or the embedded one) and registers the model's parts
in Detectron2's registries. It must come before any ``from detectron2 ...``.
"""

from d2_maskrcnn._bootstrap import EngineInfo, choose_engine, engine_info
from d2_maskrcnn._version import __version__

choose_engine()

import importlib  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import d2_maskrcnn.modeling  # noqa: E402, F401 - registers the model's parts
from d2_maskrcnn.config import add_d2_maskrcnn_config  # noqa: E402
from d2_maskrcnn.errors import UserError  # noqa: E402

if TYPE_CHECKING:
    from d2_maskrcnn.config.loading import load_config
    from d2_maskrcnn.predictor import Predictor
    from d2_maskrcnn.results import Results

# Imported at first use, so that a training doesn't load what only prediction needs.
_LAZY = {
    "Predictor": "d2_maskrcnn.predictor",
    "Results": "d2_maskrcnn.results",
    "load_config": "d2_maskrcnn.config.loading",
}

__all__ = [
    "EngineInfo",
    "Predictor",
    "Results",
    "UserError",
    "__version__",
    "add_d2_maskrcnn_config",
    "engine_info",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
