"""Check the values of a config: each by itself, those that must fit together, and those this model does not support."""

import functools
import logging
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch

from d2_maskrcnn.config.keys import add_d2_maskrcnn_config, get_value
from d2_maskrcnn.config.rules import NORMS, RULES
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.utils import comm

logger = logging.getLogger(__name__)
DEVICES = ("cpu", "cuda", "mps", "xpu")
MAX_TEXT = 4096  # characters, as of a path
_TYPE_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "text"}


def check_value(key: str, value: Any, default: Any, where: str = "") -> None:
    """Check the type of one value, and its range or choices.

    Args:
        key: the full key, such as ``SOLVER.BASE_LR``.
        value: the value to check.
        default: a valid value of the key, of the type that is expected; None allows any type.
        where: the file or command line that the value comes from, for messages.

    Raises:
        UserError: the value is not allowed; the message gives the allowed ones.
    """
    problem = _type_problem(value, default)
    rule = RULES.get(key)
    if not problem and rule is not None and value is not None and not rule.accepts(value):
        problem = rule.expected
    if not problem and rule is None and any(isinstance(item, float) and math.isinf(item) for item in _items(value)):
        problem = "a finite number"
    if problem:
        raise UserError(f"{where}{': ' if where else ''}{key} is {_shorten(value)}; expected {problem}.")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _type_problem(value: Any, default: Any) -> str:
    """Return the type that was expected if ``value`` has another one; "" otherwise."""
    if default is None:  # an optional number
        return "" if value is None or type(value) in (int, float) else "a number or None"
    kinds: tuple[type, ...] = {float: (int, float), list: (list, tuple), tuple: (list, tuple)}.get(
        type(default), (type(default),)
    )
    if type(value) not in kinds:
        return f"{_TYPE_NAMES.get(type(default), 'a list')}, such as {_shorten(default)}"
    if isinstance(value, str):
        plain = len(value) <= MAX_TEXT and value.replace("\n", "").isprintable()
        return "" if plain else f"at most {MAX_TEXT} characters without control characters"
    return "numbers" if any(isinstance(item, float) and math.isnan(item) for item in _items(value)) else ""


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value


def check_values(cfg: CfgNode) -> None:
    """Check every value of a training's config, then those that must fit together.

    Raises:
        UserError: the first problem.
    """
    check_each_value(cfg)
    usable_device(cfg.MODEL.DEVICE)
    for check in (_check_amp, _check_schedule, _check_sizes, _check_micro_batches, _check_early_stopping):
        check(cfg)


def check_each_value(cfg: CfgNode) -> None:
    """Check the type, range and choices of every value of Detectron2's and this plugin's keys.

    Raises:
        UserError: the first value that is not allowed.
    """
    defaults = _defaults()
    for key, value in leaves(cfg):
        if key in defaults:  # other keys belong to the user's own code
            check_value(key, value, defaults[key])
    _check_channels(cfg)


def _check_channels(cfg: CfgNode) -> None:
    mean, std, layout = len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT
    if mean != std or (layout != "RAW" and mean != 3):
        raise UserError(
            f"MODEL.PIXEL_MEAN has {mean} values, MODEL.PIXEL_STD {std} and INPUT.FORMAT is {layout!r}; expected one "
            "value per channel in both, 3 for 'BGR' and 'RGB', any number for 'RAW' (channels as the files store them)."
        )


@functools.lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    return dict(leaves(cfg))


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full key and the value of everything in ``node`` that is not a group of keys."""
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_amp(cfg: CfgNode) -> None:
    on_gpu = str(cfg.MODEL.DEVICE).startswith("cuda")
    if cfg.SOLVER.AMP.ENABLED and cfg.D2_MASKRCNN.SOLVER.AMP_DTYPE == "float16" and not on_gpu:
        raise UserError(
            f"D2_MASKRCNN.SOLVER.AMP_DTYPE is 'float16' on MODEL.DEVICE {cfg.MODEL.DEVICE}; expected 'bfloat16' or "
            "'auto' without CUDA."
        )


def _check_schedule(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR != 0:
        raise UserError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END} and SOLVER.BASE_LR {solver.BASE_LR}; WarmupCosineLR needs a "
            "BASE_LR above 0, and a BASE_LR_END from 0 to BASE_LR."
        )


def _check_sizes(cfg: CfgNode) -> None:
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and len(sizes) != 2:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)}; expected two sizes for MIN_SIZE_TRAIN_SAMPLING 'range', such as "
            "(640, 800)."
        )
    crop = cfg.INPUT.CROP
    if crop.ENABLED and crop.TYPE.startswith("relative") and max(crop.SIZE) > 1:
        raise UserError(
            f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}; TYPE {crop.TYPE!r} needs shares of the image, each above 0 to 1."
        )


def _check_micro_batches(cfg: CfgNode) -> None:
    count, share = cfg.D2_MASKRCNN.SOLVER.ACCUMULATE, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
    if not 1 <= count <= max(share, 1):
        raise UserError(
            f"D2_MASKRCNN.SOLVER.ACCUMULATE is {count}; expected 1 to {share}, the images per process of a batch "
            f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} over {comm.get_world_size()} processes)."
        )


def _check_early_stopping(cfg: CfgNode) -> None:
    patience = cfg.D2_MASKRCNN.EARLY_STOPPING.PATIENCE
    if patience and not (cfg.DATASETS.TEST and cfg.TEST.EVAL_PERIOD > 0):
        raise UserError(
            f"D2_MASKRCNN.EARLY_STOPPING.PATIENCE is {patience}, but nothing is evaluated during training: set "
            f"TEST.EVAL_PERIOD (now {cfg.TEST.EVAL_PERIOD}) and DATASETS.TEST or D2_MASKRCNN.DATA.VAL_JSON, or "
            "PATIENCE 0."
        )


# Key -> the values of the deciding key that use it.
_USED_BY = {
    "SOLVER.MOMENTUM": ("D2_MASKRCNN.SOLVER.OPTIMIZER", ("SGD",)),
    "SOLVER.NESTEROV": ("D2_MASKRCNN.SOLVER.OPTIMIZER", ("SGD",)),
    "SOLVER.STEPS": ("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR",)),
    "SOLVER.GAMMA": ("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")),
    "SOLVER.BASE_LR_END": ("SOLVER.LR_SCHEDULER_NAME", ("WarmupCosineLR",)),
    "SOLVER.NUM_DECAYS": ("SOLVER.LR_SCHEDULER_NAME", ("WarmupStepWithFixedGammaLR",)),
    "D2_MASKRCNN.SOLVER.AMP_DTYPE": ("SOLVER.AMP.ENABLED", (True,)),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": ("SOLVER.CLIP_GRADIENTS.ENABLED", (True,)),
}


def warn_ignored_keys(cfg: CfgNode) -> None:
    """Log the keys that differ from their default but that the chosen optimizer or schedule does not use."""
    for key, (decider, users) in _USED_BY.items():
        value, chosen = get_value(cfg, key), get_value(cfg, decider)
        if value != _defaults()[key] and chosen not in users:
            logger.warning("%s %r is ignored: %s is %r.", key, value, decider, chosen)


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


# Switches of Detectron2 that this model does not support -> what they switch on.
_OFF = {
    "MODEL.KEYPOINT_ON": "keypoint heads",
    "MODEL.LOAD_PROPOSALS": "precomputed proposals",
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": "federated loss",
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": "sigmoid classification",
}


def require(cfg: CfgNode, key: str, supported: Collection[Any]) -> Any:
    """Return the value under ``key`` if it is one of ``supported``.

    Raises:
        UserError: it is not; the message gives the key, its value and the supported values.
    """
    value = get_value(cfg, key)
    if value not in supported:
        expected = ", ".join(repr(choice) for choice in supported)
        raise UserError(f"{key} is {value!r}, which this model does not support; expected {expected}.")
    return value


def require_norm(cfg: CfgNode, key: str, *channels: int) -> str:
    """Return the normalization under ``key`` for layers of these widths ("" for none).

    Raises:
        UserError: an unknown name, or group norm (32 groups) on a width that 32 does not divide.
    """
    norm: str = require(cfg, key, NORMS)
    odd = [width for width in channels if width % 32]
    if norm == "GN" and odd:
        raise UserError(
            f"{key} is 'GN' (32 groups of channels), but a layer has {odd[0]} channels; use a multiple of 32."
        )
    return norm


def refuse_unsupported(cfg: CfgNode) -> None:
    """Refuse switches that belong to no single component of the model.

    Raises:
        UserError: one of them needs something that this model does not have.
    """
    for key, meaning in _OFF.items():
        if get_value(cfg, key):
            raise UserError(f"{key} is True, but this model has no {meaning}; set it to False.")
    check_value("MODEL.ROI_HEADS.NUM_CLASSES", cfg.MODEL.ROI_HEADS.NUM_CLASSES, default=80)
    if cfg.VIS_PERIOD > 0:
        raise UserError(f"VIS_PERIOD is {cfg.VIS_PERIOD}, but this model draws no images during training; set it to 0.")


def level_names(cfg: CfgNode, key: str, input_shape: dict[str, ShapeSpec]) -> list[str]:
    """Return the feature names under ``key``.

    Raises:
        UserError: there are none, or one that the backbone does not have.
    """
    names: list[str] = list(get_value(cfg, key))
    unknown = [name for name in names if name not in input_shape]
    if unknown or not names:
        raise UserError(f"{key} is {names}; expected one or more of the backbone's features {', '.join(input_shape)}.")
    return names
