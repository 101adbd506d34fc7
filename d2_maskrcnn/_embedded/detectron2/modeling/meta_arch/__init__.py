"""Whole models: the registry, and construction from a config."""

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY", "build_model"]

__getattr__ = lookup(__name__)

# Classes or functions of a config that return a model: from a list of dicts, one per image, to losses or results.
META_ARCH_REGISTRY = Registry("META_ARCH")
# This engine has no such heads; programs register their own.
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")


def build_model(cfg: CfgNode) -> nn.Module:
    """Build the model named ``MODEL.META_ARCHITECTURE`` on ``MODEL.DEVICE``, without loading weights.

    Raises:
        KeyError: the name is not registered.
    """
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(torch.device(cfg.MODEL.DEVICE))
