"""Values of config keys that a training cannot have, each refused in one line before anything is built."""

import logging
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch

from d2_maskrcnn.config.keys import get_value
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils import comm

logger = logging.getLogger(__name__)
MODES = ("max", "min")
DEVICES = ("cpu", "cuda", "mps", "xpu")


class Rule(NamedTuple):
    """What a value must be."""

    holds: Callable[[Any], bool]
    expected: str


def at_least(least: float, what: str) -> Rule:
    """A finite number of ``least`` or more."""
    return Rule(lambda value: math.isfinite(value) and value >= least, f"at least {least} {what}".rstrip())


def one_of(choices: Collection[str]) -> Rule:
    """One of a few words."""
    return Rule(lambda value: value in choices, f"one of {', '.join(repr(choice) for choice in choices)}")


SHARE = Rule(lambda value: 0 <= value <= 1, "0 to 1")
OURS = "D2_MASKRCNN."
RULES = {
    "SOLVER.MAX_ITER": at_least(1, "iteration"),
    "SOLVER.IMS_PER_BATCH": at_least(1, "image"),
    "SOLVER.CHECKPOINT_PERIOD": at_least(1, "iteration"),
    "SOLVER.BASE_LR": at_least(0, "for the learning rate"),
    "TEST.PRECISE_BN.NUM_ITER": at_least(1, "batch"),
    OURS + "LOG_PERIOD": at_least(1, "iteration"),
    OURS + "SOLVER.MAX_GRAD_NORM": at_least(0, "(0 does not clip)"),
    OURS + "SOLVER.AMP_DTYPE": one_of(("auto", "float16", "bfloat16")),
    OURS + "SOLVER.REFERENCE_BATCH": at_least(0, "images (0 does not scale)"),
    OURS + "BEST_CHECKPOINT.MODE": one_of(MODES),
    OURS + "EARLY_STOPPING.MODE": one_of(MODES),
    OURS + "EARLY_STOPPING.PATIENCE": at_least(0, "evaluations (0 never stops early)"),
    OURS + "EARLY_STOPPING.MIN_DELTA": at_least(0, "in the metric's unit"),
    OURS + "EMA.DECAY": Rule(lambda value: 0 <= value < 1, "at least 0 and less than 1, such as 0.999"),
    OURS + "EVALUATION.CONFUSION_IOU": SHARE,
    OURS + "EVALUATION.CONFUSION_SCORE": SHARE,
    OURS + "INPUT.COPY_PASTE.PROBABILITY": SHARE,
    OURS + "INSPECT.IMAGES": at_least(0, "images"),
    OURS + "INSPECT.SCORE_THRESHOLD": SHARE,
    OURS + "INSPECT.MAX_SHARE": SHARE,
    OURS + "WANDB.MODE": one_of(("online", "offline", "disabled")),
    OURS + "WANDB.LOG_MODEL": one_of(("none", "end", "all")),
    OURS + "WANDB.WATCH": one_of(("", "gradients", "parameters", "all")),
    OURS + "WANDB.WATCH_PERIOD": at_least(1, "iteration"),
    OURS + "WANDB.NUM_IMAGES": at_least(0, "images"),
    OURS + "WANDB.SCORE_THRESHOLD": SHARE,
}


def check_values(cfg: CfgNode) -> None:
    """Looks at single values and then at those that must fit together.

    Raises:
        UserError: the first that cannot be.
    """
    for key, rule in RULES.items():
        value = get_value(cfg, key)
        if not rule.holds(value):
            raise UserError(f"{key} is {value!r}; expected {rule.expected}.")
    _check_amp(cfg)
    _check_parts(cfg)
    _check_patience(cfg)
    _check_augmented_sizes(cfg)


def _check_amp(cfg: CfgNode) -> None:
    on_gpu = str(cfg.MODEL.DEVICE).startswith("cuda")
    if cfg.SOLVER.AMP.ENABLED and cfg.D2_MASKRCNN.SOLVER.AMP_DTYPE == "float16" and not on_gpu:
        raise UserError(
            f"D2_MASKRCNN.SOLVER.AMP_DTYPE is 'float16' on MODEL.DEVICE {cfg.MODEL.DEVICE}; expected 'bfloat16' or "
            "'auto' where there is no CUDA."
        )


def _check_parts(cfg: CfgNode) -> None:
    parts, share = cfg.D2_MASKRCNN.SOLVER.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if not 1 <= parts <= max(share, 1):
        raise UserError(
            f"D2_MASKRCNN.SOLVER.ACCUMULATE is {parts}: expected 1 to {share}, the images of a batch "
            f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}) that each of {comm.get_world_size()} processes gets."
        )


def _check_patience(cfg: CfgNode) -> None:
    patience = cfg.D2_MASKRCNN.EARLY_STOPPING.PATIENCE
    if patience and not (cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0):
        raise UserError(
            f"D2_MASKRCNN.EARLY_STOPPING.PATIENCE is {patience}, but nothing is evaluated on the way: set "
            f"TEST.EVAL_PERIOD (it is {cfg.TEST.EVAL_PERIOD}) and DATASETS.TEST or D2_MASKRCNN.DATA.VAL_JSON, or "
            "PATIENCE 0."
        )


def _check_augmented_sizes(cfg: CfgNode) -> None:
    sizes = tuple(cfg.TEST.AUG.MIN_SIZES)
    if cfg.TEST.AUG.ENABLED and (not sizes or min(sizes) < 1):
        raise UserError(f"TEST.AUG.MIN_SIZES is {sizes}; expected one or several sizes in pixels, such as (640, 800).")


def usable_device(name: str) -> torch.device:
    """Return the device, or the CPU (with a warning) if it is a CUDA device and this machine has none.

    Raises:
        UserError: not the name of a device, or the device cannot be used.
    """
    expected = f"expected one of {', '.join(DEVICES)}, or one with a number such as cuda:1"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"MODEL.DEVICE is {name!r}; {expected}.") from error
    if device.type not in DEVICES:
        raise UserError(f"MODEL.DEVICE is {name!r}; {expected}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, but no CUDA device is available: using the CPU, which is slow.", name)
        return torch.device("cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"MODEL.DEVICE {name} cannot be used ({reason}); {expected}.") from error
    return device


NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN")

# Switches of Detectron2 that ask for something else than Mask R-CNN -> what they ask for.
_OFF = {
    "MODEL.KEYPOINT_ON": "keypoint heads",
    "MODEL.LOAD_PROPOSALS": "precomputed proposals",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": "federated loss",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": "sigmoid classification",
}


def require(cfg: CfgNode, key: str, supported: Collection[Any]) -> Any:
    """The value under ``key`` if it is one of ``supported``.

    Raises:
        UserError: it is not; the message names the key, its value and the supported ones.
    """
    value = get_value(cfg, key)
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
        UserError: one of them asks for something that this model has not got.
    """
    for key, meaning in _OFF.items():
        if get_value(cfg, key):
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
    names: list[str] = list(get_value(cfg, key))
    unknown = [name for name in names if name not in input_shape]
    if unknown or not names:
        raise UserError(f"{key} is {names}: expected one or more of the backbone's features {', '.join(input_shape)}")
    return names
