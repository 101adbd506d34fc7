"""Backbones: the base class, the registry, and construction from a config."""

from abc import ABCMeta, abstractmethod

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]

__getattr__ = lookup(__name__)

# Classes or functions of (cfg, input_shape) that return a Backbone.
BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module, metaclass=ABCMeta):
    """Base class of networks that map images to named feature maps.

    Subclasses set ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (name -> int), or
    override :meth:`output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, C, H, W) to feature maps by name."""

    @property
    def size_divisibility(self) -> int:
        """Number that must divide H and W; 0 if any size is accepted."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Constraints for ``ImageList.from_tensors``: ``size_divisibility``, ``square_size``; empty for none."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map, by name."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone named ``MODEL.BACKBONE.NAME``.

    Args:
        cfg: the config.
        input_shape: of the images; None for as many channels as ``MODEL.PIXEL_MEAN`` has values.

    Raises:
        KeyError: the name is not registered.
        TypeError: the registered object does not return a :class:`Backbone`.
    """
    shape = input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    built = BACKBONE_REGISTRY.get(name)(cfg, shape)
    if not isinstance(built, Backbone):
        raise TypeError(f"MODEL.BACKBONE.NAME {name!r} built a {type(built).__name__}, which is not a Backbone")
    return built
