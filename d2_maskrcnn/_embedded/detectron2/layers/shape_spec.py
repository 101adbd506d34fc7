"""What is known of a feature map before any image is seen."""

from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """Shape of a feature map; None for what is not known.

    Attributes:
        channels: number of channels.
        height: rows.
        width: columns.
        stride: pixels of the network's input for each row or column.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
