"""Axis-aligned boxes and their overlaps.

A box is (x0, y0, x1, y1) in pixels; the first pixel of an image covers [0, 1) x [0, 1), so a width is x1 - x0.
"""

from collections.abc import Iterator
from typing import Any

import torch

from detectron2._errors import InvalidArgumentError
from detectron2._names import lookup
from detectron2.structures.box_mode import BoxMode

__all__ = ["BoxMode", "Boxes", "matched_pairwise_iou", "pairwise_intersection", "pairwise_ioa", "pairwise_iou"]


class Boxes:
    """N boxes of an image.

    Attributes:
        tensor: (N, 4) float32, (x0, y0, x1, y1) in pixels.
    """

    def __init__(self, tensor: torch.Tensor | Any) -> None:
        """Store a float32 tensor as it is, or convert anything else of shape (N, 4).

        Raises:
            ValueError: the shape is not (N, 4). An input without elements becomes (0, 4).
        """
        tensor = torch.as_tensor(tensor).to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(-1, 4)  # not a new tensor: `.sum().backward()` must work without boxes
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise InvalidArgumentError(f"Boxes need a tensor of shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """Return a copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, *args: Any, **kwargs: Any) -> "Boxes":
        """Return the boxes on another device; arguments as for ``torch.Tensor.to``, but the dtype stays float32."""
        return Boxes(self.tensor.to(*args, **kwargs))

    def area(self) -> torch.Tensor:
        """Return (N,) areas in square pixels; negative for boxes with one reversed side."""
        return (self.tensor[:, 2] - self.tensor[:, 0]) * (self.tensor[:, 3] - self.tensor[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clip the boxes in place: x to [0, width] and y to [0, height].

        Args:
            box_size: (height, width) of the image in pixels.

        Raises:
            ValueError: a coordinate is infinite or NaN.
        """
        if not torch.isfinite(self.tensor).all():
            raise InvalidArgumentError("Boxes.clip: a coordinate is infinite or NaN")
        height, width = box_size
        xs = self.tensor[:, 0::2].clamp(min=0, max=width)  # (N, 2): x0, x1
        ys = self.tensor[:, 1::2].clamp(min=0, max=height)  # (N, 2): y0, y1
        self.tensor = torch.stack((xs, ys), dim=2).flatten(1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Return (N,) bool: whether both sides are longer than ``threshold`` pixels."""
        sides = self.tensor[:, 2:] - self.tensor[:, :2]  # (N, 2)
        return (sides > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: float = 0) -> torch.Tensor:
        """Return (N,) bool: whether a box exceeds the (height, width) image by at most ``boundary_threshold`` pixels.

        On the right and bottom sides the limit itself is excluded: x1 < width + threshold, y1 < height + threshold.
        """
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        lowest = -boundary_threshold
        return (x0 >= lowest) & (y0 >= lowest) & (x1 < width + boundary_threshold) & (y1 < height + boundary_threshold)

    def get_centers(self) -> torch.Tensor:
        """Return (N, 2) centers (x, y) in pixels."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x by ``scale_x`` and y by ``scale_y``, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """Concatenate the boxes of a list; an empty list gives no boxes."""
        if len(boxes_list) == 0:
            return cls(torch.empty(0, 4))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self.tensor.device

    def __getitem__(self, item: int | slice | torch.Tensor | Any) -> "Boxes":
        """Select boxes by an integer (one box, as a batch), a slice, or an index or bool tensor.

        Raises:
            IndexError: an index is out of range, or selects coordinates instead of boxes.
        """
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        picked = self.tensor[item]
        if picked.dim() != 2 or picked.shape[1] != 4:
            raise IndexError(f"Boxes indexed with {item!r} gives a tensor of shape {tuple(picked.shape)}, not (N, 4)")
        return Boxes(picked)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield one (4,) tensor per box."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return (N, M) intersection areas in square pixels."""
    first, second = boxes1.tensor[:, None], boxes2.tensor[None]  # (N, 1, 4), (1, M, 4)
    sides = torch.min(first[..., 2:], second[..., 2:]) - torch.max(first[..., :2], second[..., :2])  # (N, M, 2)
    return sides.clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return (N, M) intersections over unions in [0, 1]; 0 for disjoint boxes, even if both are empty."""
    shared = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - shared
    return torch.where(shared > 0, shared / union, shared.new_zeros(()))


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return (N, M) intersections over the areas of the *second* boxes, in [0, 1]; 0 for disjoint boxes."""
    shared = pairwise_intersection(boxes1, boxes2)
    return torch.where(shared > 0, shared / boxes2.area(), shared.new_zeros(()))


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> torch.Tensor:
    """Return (N,) intersections over unions of the i-th boxes of both batches; 0 for disjoint boxes.

    Raises:
        ValueError: the batches differ in length.
    """
    if len(boxes1) != len(boxes2):
        raise InvalidArgumentError(
            f"matched_pairwise_iou: the batches have different lengths, {len(boxes1)} and {len(boxes2)}"
        )
    first, second = boxes1.tensor, boxes2.tensor
    sides = torch.min(first[:, 2:], second[:, 2:]) - torch.max(first[:, :2], second[:, :2])  # (N, 2)
    shared = sides.clamp_(min=0).prod(dim=1)
    union = boxes1.area() + boxes2.area() - shared
    return torch.where(shared > 0, shared / union, shared.new_zeros(()))


__getattr__ = lookup(__name__)
