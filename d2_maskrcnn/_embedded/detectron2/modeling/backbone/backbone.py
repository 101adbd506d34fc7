"""What every backbone offers."""

from abc import ABCMeta, abstractmethod

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from images to named feature maps.

    Subclasses set ``_out_features`` (names), ``_out_feature_channels`` and ``_out_feature_strides`` (name -> int), or
    override :meth:`output_shape`.
    """

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    @abstractmethod
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, C, H, W) normalised images -> feature maps by name."""

    @property
    def size_divisibility(self) -> int:
        """H and W must be multiples of this; 0 if anything will do."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What ``ImageList.from_tensors`` shall see to: ``size_divisibility``, ``square_size``; empty: nothing."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map, by name."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }


__getattr__ = lookup(__name__)
