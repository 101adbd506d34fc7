"""The numbers of a ``ShapeSpec`` that a layer cannot do without."""

from detectron2.layers import ShapeSpec


def channels_of(shape: ShapeSpec) -> int:
    """The channels, or ValueError where the component that made ``shape`` left them out."""
    if shape.channels is None:
        raise ValueError(f"a feature map without channels: {shape}")
    return shape.channels


def stride_of(shape: ShapeSpec) -> int:
    """Pixels of the image for each step in the feature map, or ValueError where ``shape`` does not say."""
    if shape.stride is None:
        raise ValueError(f"a feature map without stride: {shape}")
    return shape.stride


def area_of(shape: ShapeSpec) -> int:
    """Height times width; 1 for a vector."""
    return (shape.height or 1) * (shape.width or 1)
