"""The registry of whole models."""

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

# Classes or functions that a config makes a model of: from a list of dicts (one for each image) to losses, or to
# results.
META_ARCH_REGISTRY = Registry("META_ARCH")


def build_model(cfg: CfgNode) -> nn.Module:
    """The model named ``MODEL.META_ARCHITECTURE``, on ``MODEL.DEVICE``. No weights are loaded.

    Raises:
        KeyError: no such name is registered.
    """
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
