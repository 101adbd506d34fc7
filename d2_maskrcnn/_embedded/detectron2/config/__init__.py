"""Configuration: YACS nodes with inheritance between files, the defaults, and ``@configurable``."""

from detectron2._names import lookup
from detectron2.config.compat import downgrade_config, upgrade_config
from detectron2.config.config import CfgNode, get_cfg, global_cfg, set_global_cfg, try_get_key
from detectron2.config.configurable import configurable

__all__ = [
    "CfgNode",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "set_global_cfg",
    "try_get_key",
    "upgrade_config",
]

__getattr__ = lookup(__name__)
