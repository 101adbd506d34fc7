"""Shapes of feature maps that are known before any image is read."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map; None for what is not known.

    Attributes:
        channels: number of channels.
        height: number of rows.
        width: number of columns.
        stride: pixels of the network's input per row or column.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
