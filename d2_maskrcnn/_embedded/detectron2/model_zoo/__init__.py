"""The model zoo: configs of published models by name, the addresses of their weights, and the models themselves."""

import functools
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from detectron2._names import NotInEngineError, not_in_engine
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

_FOLDER = Path(__file__).resolve().parent
_CONFIGS = _FOLDER / "configs"
_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2"


def get_config_file(config_path: str) -> str:
    """Return the path of a config's file on this machine.

    Args:
        config_path: such as ``"COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"``. The ``new_baselines``, which
            are Python files in Detectron2, are found under their ``.py`` names too.

    Raises:
        NotInEngineError: the zoo has no such config, or a model that this engine cannot build.
    """
    path = _CONFIGS / f"{_entry(config_path)}.yaml"
    if path.is_file() and (config_path.endswith(".yaml") or path.parent.name == "new_baselines"):
        return str(path)
    raise _missing_entry(config_path)


def get_checkpoint_url(config_path: str) -> str:
    """Return the address of the weights that Detectron2's authors trained with a config.

    Raises:
        NotInEngineError: no weights are published for it, or this engine cannot build the model.
    """
    name = _entry(config_path)
    published = _entries()["weights"].get(name)
    if published is not None:
        return f"{_ADDRESS}/{name}/{published['file']}"
    if (_CONFIGS / f"{name}.yaml").is_file():
        raise NotInEngineError(f"model zoo: no trained weights are published for {config_path}")
    raise _missing_entry(config_path)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Return a config of the zoo.

    Args:
        config_path: see :func:`get_config_file`.
        trained: whether ``MODEL.WEIGHTS`` becomes :func:`get_checkpoint_url`, instead of the weights that the training
            starts from (a backbone trained on ImageNet, as a rule).
    """
    chosen = get_cfg()
    chosen.merge_from_file(get_config_file(config_path))
    chosen.MODEL.WEIGHTS = get_checkpoint_url(config_path) if trained else chosen.MODEL.WEIGHTS
    return chosen


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a model of the zoo and load its weights, which are downloaded once.

    Args:
        config_path: see :func:`get_config_file`.
        trained: see :func:`get_config`.
        device: None takes the GPU, or the CPU where no GPU is available.

    Returns:
        The model in training mode.
    """
    chosen = get_config(config_path, trained)
    chosen.MODEL.DEVICE = device or (chosen.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    built = build_model(chosen)
    DetectionCheckpointer(built).load(chosen.MODEL.WEIGHTS)
    return built


def _entry(config_path: str) -> str:
    return config_path.removesuffix(".yaml").removesuffix(".py")


@functools.cache
def _entries() -> dict[str, Any]:
    return yaml.safe_load((_FOLDER / "entries.yaml").read_text())


def _missing_entry(config_path: str) -> NotInEngineError:
    for pattern, part in _entries()["missing"].items():
        if fnmatch(config_path, pattern):
            return not_in_engine(f"model zoo config {config_path}", part)
    return NotInEngineError(
        f"{config_path} is not available in the model zoo; expected a name such as "
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    )
