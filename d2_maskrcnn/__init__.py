"""Mask R-CNN with a ResNet-FPN backbone as a Detectron2 plugin.

Importing this package chooses the engine (an installed Detectron2, or the embedded one) and registers the model's parts
in Detectron2's registries. It must come before any ``from detectron2 ...``.
"""

from d2_maskrcnn._bootstrap import EngineInfo, choose_engine, engine_info
from d2_maskrcnn._version import __version__

choose_engine()

import d2_maskrcnn.modeling  # noqa: E402, F401 - registers the model's parts
from d2_maskrcnn.config import add_d2_maskrcnn_config  # noqa: E402
from d2_maskrcnn.errors import UserError  # noqa: E402

__all__ = ["EngineInfo", "UserError", "__version__", "add_d2_maskrcnn_config", "engine_info"]
