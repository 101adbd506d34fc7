"""Helpers for the tests of programs that use this API."""

import unittest
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.structures import Boxes, Instances
from detectron2.utils.env import TORCH_VERSION

__all__ = ["assert_instances_allclose", "get_model_no_weights", "min_torch_version", "random_boxes"]

__getattr__ = lookup(__name__)


def get_model_no_weights(config_path: str) -> nn.Module:
    """Build a model of the zoo with random weights, on the CPU if no GPU is available."""
    from detectron2 import model_zoo

    cfg = model_zoo.get_config(config_path)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return model_zoo.build_model(cfg)


def random_boxes(num_boxes: int, max_coord: float = 100, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return (num_boxes, 4) random XYXY boxes: corners and sides from 1 to max_coord / 2, as regression needs them."""
    values = (torch.rand(num_boxes, 4, device=device) * (max_coord / 2)).clamp(min=1)
    return torch.cat((values[:, :2], values[:, :2] + values[:, 2:]), dim=1)


def assert_instances_allclose(
    input: Instances, other: Instances, *, rtol: float = 1e-5, msg: str = "", size_as_tensor: bool = False
) -> None:
    """Assert that two instances have the same size, the same fields, and equal values up to a relative tolerance.

    Raises:
        AssertionError: they differ; the message names the field.
    """
    sizes = [tuple(int(side) for side in instances.image_size) for instances in (input, other)]
    if sizes[0] != sizes[1]:
        raise AssertionError(f"{msg} image_size: {sizes[0]} and {sizes[1]}")
    if input.get_fields().keys() != other.get_fields().keys():
        raise AssertionError(f"{msg} fields: {sorted(input.get_fields())} and {sorted(other.get_fields())}")
    for name, value in input.get_fields().items():
        if not _is_close(value, other.get(name), rtol):
            raise AssertionError(f"{msg} field {name} differs")


def _is_close(value: Any, expected: Any, rtol: float) -> bool:
    value, expected = (item.tensor if isinstance(item, Boxes) else item for item in (value, expected))
    if not isinstance(value, torch.Tensor):
        return bool(value == expected)
    if value.shape != expected.shape:
        return False
    if not value.is_floating_point():
        return torch.equal(value, expected)
    return torch.allclose(value, expected, rtol=rtol, atol=float(expected.abs().max()) * rtol if len(value) else 0.0)


def min_torch_version(min_version: str) -> bool:
    """Return whether PyTorch has at least a version such as ``"1.8"``."""
    major, minor = (int(part) for part in min_version.split(".")[:2])
    return (major, minor) <= TORCH_VERSION


def skipIfUnsupportedMinTorchVersion(min_version: str) -> Callable[[Any], Any]:
    """Return the decorator that skips a test below this version of PyTorch."""
    return unittest.skipIf(not min_torch_version(min_version), f"needs PyTorch {min_version}")
