"""Base class of the blocks of a convolutional backbone."""

from torch import nn

from detectron2._names import lookup
from detectron2.layers.batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride).

    Attributes:
        in_channels: channels of its input.
        out_channels: channels of its output.
        stride: rows and columns of the input for each of the output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def freeze(self) -> "CNNBlockBase":
        """Make all parameters constant, convert batch normalization to its frozen form, and return the block."""
        FrozenBatchNorm2d.convert_frozen_batchnorm(self.requires_grad_(False))
        return self


__getattr__ = lookup(__name__)
