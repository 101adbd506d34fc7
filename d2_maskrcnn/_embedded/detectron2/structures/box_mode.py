"""Representations of a box as numbers, and conversion between them."""

import math
from enum import IntEnum, unique
from typing import Any, TypeVar

import numpy as np
import torch

from detectron2._errors import InvalidArgumentError

RawBox = TypeVar("RawBox", list, tuple, np.ndarray, torch.Tensor)


@unique
class BoxMode(IntEnum):
    """Meaning of the numbers of a box. An integer, so that JSON files can store it."""

    XYXY_ABS = 0
    """(x0, y0, x1, y1) in pixels."""
    XYWH_ABS = 1
    """(x0, y0, width, height) in pixels: COCO's."""
    XYXY_REL = 2
    """(x0, y0, x1, y1) in [0, 1], fractions of the image's width and height."""
    XYWH_REL = 3
    """(x0, y0, width, height) in [0, 1]."""
    XYWHA_ABS = 4
    """(center x, center y, width, height) in pixels and the angle in degrees, counter-clockwise."""

    @staticmethod
    def convert(box: RawBox, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBox:
        """Convert one box or a batch of boxes to another mode.

        Args:
            box: a list or tuple of 4 or 5 numbers, or an array or tensor of shape (4,), (5,), (N, 4) or (N, 5); not
                changed.
            from_mode: mode of ``box``.
            to_mode: mode of the result.

        Returns:
            The same type as ``box``; ``box`` itself if both modes are equal. Lists and tuples are rounded to float32.

        Raises:
            ValueError: the shape does not fit the mode.
            NotImplementedError: there is no conversion; relative modes would need the size of the image.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        boxes = _as_matrix(box)  # (N, 4 or 5)
        _check_width(boxes, from_mode)
        converted = _convert(boxes, from_mode, to_mode)
        return _like(converted, box)


def _as_matrix(box: Any) -> torch.Tensor:
    if isinstance(box, (list, tuple)):
        if len(box) not in (4, 5):
            raise InvalidArgumentError(f"A box is 4 or 5 numbers, got {len(box)}: {box!r}")
        return torch.tensor(box)[None]
    boxes = torch.from_numpy(box) if isinstance(box, np.ndarray) else box
    if boxes.dim() not in (1, 2) or boxes.shape[-1] not in (4, 5):
        raise InvalidArgumentError(f"Boxes need the shape (N, 4) or (N, 5), got {tuple(boxes.shape)}")
    return boxes.reshape(-1, boxes.shape[-1])


def _check_width(boxes: torch.Tensor, mode: BoxMode) -> None:
    expected = 5 if mode == BoxMode.XYWHA_ABS else 4
    if boxes.shape[1] != expected:
        raise InvalidArgumentError(f"A box of mode {mode.name} is {expected} numbers, got {boxes.shape[1]}")


def _convert(boxes: torch.Tensor, from_mode: BoxMode, to_mode: BoxMode) -> torch.Tensor:
    pair = (from_mode, to_mode)
    if pair == (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)
    if pair == (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)
    if pair == (BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS):
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        return torch.cat((centers, boxes[:, 2:], torch.zeros_like(centers[:, :1])), dim=1)
    if pair == (BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS):
        return _around_rotated(boxes)
    raise NotImplementedError(f"There is no conversion of boxes from {from_mode.name} to {to_mode.name}")


def _around_rotated(boxes: torch.Tensor) -> torch.Tensor:
    """Return upright boxes (N, 4) XYXY around rotated ones (N, 5): at angle t, w x h spans |w cos t| + |h sin t|."""
    boxes = boxes.to(torch.float64) if boxes.dtype == torch.float64 else boxes.to(torch.float32)
    radians = boxes[:, 4] * (math.pi / 180)
    cos, sin = radians.cos().abs(), radians.sin().abs()
    width, height = boxes[:, 2], boxes[:, 3]
    half = torch.stack((cos * width + sin * height, sin * width + cos * height), dim=1) / 2  # (N, 2)
    return torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), dim=1)


def _like(boxes: torch.Tensor, original: RawBox) -> RawBox:
    if isinstance(original, (list, tuple)):
        return type(original)(boxes.flatten().tolist())
    shaped = boxes.reshape(*original.shape[:-1], boxes.shape[1])
    return shaped.numpy() if isinstance(original, np.ndarray) else shaped
