"""Config values that this model does not implement are refused when it is built, never ignored."""

from collections.abc import Collection
from typing import Any

from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec

NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN")

# Switches of Detectron2 that ask for something else than Mask R-CNN -> what they ask for.
_OFF = {
    "MODEL.KEYPOINT_ON": "keypoint heads",
    "MODEL.LOAD_PROPOSALS": "precomputed proposals",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": "federated loss",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": "sigmoid classification",
}


def config_value(cfg: CfgNode, key: str) -> Any:
    """The value under a dotted key.

    >>> from detectron2.config import get_cfg
    >>> config_value(get_cfg(), "MODEL.RPN.NMS_THRESH")
    0.7
    """
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def require(cfg: CfgNode, key: str, supported: Collection[Any]) -> Any:
    """The value under ``key`` if it is one of ``supported``.

    Raises:
        UserError: it is not; the message names the key, its value and the supported ones.
    """
    value = config_value(cfg, key)
    if value not in supported:
        expected = ", ".join(repr(choice) for choice in supported)
        raise UserError(f"{key} is {value!r}, which this model does not support: expected {expected}")
    return value


def require_norm(cfg: CfgNode, key: str, *channels: int) -> str:
    """The normalisation named under ``key``, for layers of these widths ("" for none).

    Raises:
        UserError: an unknown name, or group norm (32 groups) on a width that 32 does not divide.
    """
    norm: str = require(cfg, key, NORMS)
    odd = [width for width in channels if width % 32]
    if norm == "GN" and odd:
        raise UserError(
            f"{key} is 'GN', which makes 32 groups of channels, but a layer has {odd[0]}: use a multiple of 32"
        )
    return norm


def refuse_unsupported(cfg: CfgNode) -> None:
    """Checks the switches that no single component looks at.

    Raises:
        UserError: one of them asks for something that this model has not got, or the plugin's own node is missing.
    """
    if "D2_MASKRCNN" not in cfg:
        raise UserError(
            "the config has no node D2_MASKRCNN: call d2_maskrcnn.add_d2_maskrcnn_config(cfg) after get_cfg()"
        )
    for key, meaning in _OFF.items():
        if config_value(cfg, key):
            raise UserError(f"{key} is True, but this model has no {meaning}: set it to False")
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES < 1:
        raise UserError(f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: expected 1 or more")
    if cfg.VIS_PERIOD > 0:
        raise UserError(f"VIS_PERIOD is {cfg.VIS_PERIOD}, but this model draws no images while training: set it to 0")


def level_names(cfg: CfgNode, key: str, input_shape: dict[str, ShapeSpec]) -> list[str]:
    """The feature names under ``key``.

    Raises:
        UserError: there is none, or one that the backbone does not give.
    """
    names: list[str] = list(config_value(cfg, key))
    unknown = [name for name in names if name not in input_shape]
    if unknown or not names:
        raise UserError(f"{key} is {names}: expected one or more of the backbone's features {', '.join(input_shape)}")
    return names
