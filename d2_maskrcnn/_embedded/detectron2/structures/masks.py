"""Instance masks of an image: bitmaps, polygons, and probabilities inside boxes."""

from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch

from detectron2._errors import InvalidArgumentError
from detectron2.layers.roi_align import roi_align
from detectron2.structures.boxes import Boxes
from detectron2.structures.polygons import (
    check_one_box_each,
    check_polygons,
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

__all__ = [
    "BitMasks",
    "PolygonMasks",
    "ROIMasks",
    "polygon_area",
    "polygons_to_bitmask",
    "rasterize_polygons_within_box",
]

# Resampling converts bitmaps to float32, at most this many pixels at a time (64 MB): all masks of a crowded image could
# exceed the memory.
_PIXELS_AT_ONCE = 2**24


class BitMasks:
    """N masks of an image as bitmaps.

    Attributes:
        tensor: (N, H, W) bool, in the frame of the image.
        image_size: (H, W).
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray | Any) -> None:
        """Convert a tensor or array (N, H, W); values other than 0 belong to the mask.

        Raises:
            ValueError: the shape is not (N, H, W).
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(np.asarray(tensor))
        if tensor.dim() != 3:
            raise InvalidArgumentError(f"BitMasks need a tensor of shape (N, H, W), got {tuple(tensor.shape)}")
        self.tensor = tensor.to(torch.bool)
        self.image_size = (int(tensor.shape[1]), int(tensor.shape[2]))

    @staticmethod
    def from_polygon_masks(
        polygon_masks: Union["PolygonMasks", Sequence[Sequence[np.ndarray]]], height: int, width: int
    ) -> "BitMasks":
        """Rasterize polygons, in pixels of the image, by COCO's rules, on the CPU."""
        polygons = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        if len(polygons) == 0:
            return BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
        return BitMasks(np.stack([polygons_to_bitmask(p, height, width) for p in polygons]))

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """Return the masks on another device; arguments as for ``torch.Tensor.to``, but the dtype stays bool."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    def area(self) -> torch.Tensor:
        """Return (N,) int64: numbers of pixels."""
        return self.tensor.sum(dim=(1, 2))

    def nonempty(self) -> torch.Tensor:
        """Return (N,) bool: whether a mask has a pixel."""
        return _any(self.tensor.flatten(1), dim=1)

    def get_bounding_boxes(self) -> Boxes:
        """Return tight boxes: pixel columns c0..c1 give x0 = c0, x1 = c1 + 1. An empty mask has (0, 0, 0, 0)."""
        x0, x1 = _first_and_end(_any(self.tensor, dim=1))  # columns
        y0, y1 = _first_and_end(_any(self.tensor, dim=2))  # rows
        return Boxes(torch.stack((x0, y0, x1, y1), dim=1))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Crop a box from each mask and resample it to a square grid.

        The resampling is that of ROI pooling (aligned ROIAlign with one sample per pixel; Mask R-CNN, section 3),
        thresholded at 0.5, so that a training target covers exactly the area of the mask head's features.

        Args:
            boxes: (N, 4) XYXY in pixels of the image, one per mask.
            mask_size: cells along each side of the grid.

        Returns:
            (N, mask_size, mask_size) bool, on the device of ``boxes``.

        Raises:
            ValueError: the numbers of boxes and masks differ.
        """
        check_one_box_each(boxes, len(self))
        boxes = boxes.detach().to(torch.float32)
        at_once = max(1, _PIXELS_AT_ONCE // max(1, self.image_size[0] * self.image_size[1]))
        grids = [
            _align(self.tensor[start : start + at_once], boxes[start : start + at_once], mask_size)
            for start in range(0, len(self), at_once)
        ]
        return torch.cat(grids) if grids else boxes.new_zeros((0, mask_size, mask_size), dtype=torch.bool)

    @staticmethod
    def cat(bitmasks_list: list["BitMasks"]) -> "BitMasks":
        """Concatenate the masks of a non-empty list."""
        if len(bitmasks_list) == 0:
            raise InvalidArgumentError("BitMasks.cat needs at least one BitMasks")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))

    def __getitem__(self, item: int | slice | torch.Tensor | Any) -> "BitMasks":
        """Select masks by an integer (one mask, as a batch), a slice, or an index or bool tensor.

        Raises:
            IndexError: an index is out of range, or selects pixels instead of masks.
        """
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        picked = self.tensor[item]
        if picked.dim() != 3:
            raise IndexError(
                f"BitMasks indexed with {item!r} gives a tensor of shape {tuple(picked.shape)}, not (N, H, W)"
            )
        return BitMasks(picked)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield one (H, W) tensor per mask."""
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"


def _align(masks: torch.Tensor, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None]
    pixels = masks[:, None].to(device=boxes.device, dtype=torch.float32)  # (n, 1, H, W)
    coverage = roi_align(
        pixels, torch.cat((index, boxes), dim=1), mask_size, spatial_scale=1.0, sampling_ratio=0, aligned=True
    )
    return coverage[:, 0] >= 0.5


def _any(masks: torch.Tensor, dim: int) -> torch.Tensor:
    """Compute ``masks.any(dim)`` of bool tensors; the largest byte takes a tenth of its time on a CPU."""
    return masks.view(torch.uint8).amax(dim).view(torch.bool) if masks.numel() > 0 else masks.any(dim)


def _first_and_end(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (N,) indices of the first True of (N, L) bool rows, and of the last one plus 1; 0 and 0 for rows without
    True.
    """
    length = occupied.shape[1]
    if length == 0 or occupied.shape[0] == 0:
        return occupied.new_zeros(len(occupied), dtype=torch.long), occupied.new_zeros(len(occupied), dtype=torch.long)
    marks = occupied.to(torch.uint8)
    first = marks.argmax(dim=1)  # the first of equal maxima
    end = length - marks.flip(1).argmax(dim=1)
    return first, torch.where(occupied.any(dim=1), end, torch.zeros_like(end))


class PolygonMasks:
    """N masks of an image, each the union of a list of polygons. They are NumPy arrays and stay on the CPU.

    Attributes:
        polygons: N lists of float64 arrays [x0, y0, x1, y1, ...] in pixels.
    """

    def __init__(self, polygons: Sequence[Sequence[Any]]) -> None:
        """Convert N lists of polygons, each an array, tensor or list of 2K numbers, K >= 3.

        Raises:
            ValueError: the nesting is different, or a polygon has an odd number of values or fewer than three points.
        """
        if not isinstance(polygons, (list, tuple)):
            raise InvalidArgumentError(f"PolygonMasks need a list of lists of polygons, got {type(polygons).__name__}")
        self.polygons = [check_polygons(instance) for instance in polygons]

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """Return the masks themselves: polygons stay on the CPU."""
        return self

    def area(self) -> torch.Tensor:
        """Return (N,) float64: sums of the polygons' areas in square pixels (overlap counts twice)."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in instance) for instance in self.polygons]
        return torch.tensor(areas, dtype=torch.float64)

    def nonempty(self) -> torch.Tensor:
        """Return (N,) bool: whether an instance has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """Return tight boxes around all polygons of each instance; (0, 0, 0, 0) for an instance without polygons."""
        boxes = torch.zeros(len(self), 4)
        for row, instance in zip(boxes, self.polygons, strict=True):
            if instance:
                points = np.concatenate(instance).reshape(-1, 2)  # (K, 2)
                row[:] = torch.from_numpy(np.concatenate((points.min(axis=0), points.max(axis=0))))
        return Boxes(boxes)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Rasterize the part of each instance inside its box on a square grid; see
        :func:`rasterize_polygons_within_box`.

        Args:
            boxes: (N, 4) XYXY in pixels of the image, one per instance.
            mask_size: cells along each side of the grid.

        Returns:
            (N, mask_size, mask_size) bool, on the device of ``boxes``.

        Raises:
            ValueError: the numbers of boxes and instances differ.
        """
        check_one_box_each(boxes, len(self))
        rows = boxes.detach().cpu().numpy()
        grids = [rasterize_polygons_within_box(p, box, mask_size) for p, box in zip(self.polygons, rows, strict=True)]
        if not grids:
            return boxes.new_zeros((0, mask_size, mask_size), dtype=torch.bool)
        return torch.stack(grids).to(boxes.device)

    @staticmethod
    def cat(polymasks_list: list["PolygonMasks"]) -> "PolygonMasks":
        """Concatenate the instances of a non-empty list."""
        if len(polymasks_list) == 0:
            raise InvalidArgumentError("PolygonMasks.cat needs at least one PolygonMasks")
        return PolygonMasks([instance for masks in polymasks_list for instance in masks.polygons])

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor | np.ndarray) -> "PolygonMasks":
        """Select instances by an integer (one instance, as a batch), a slice, a list, or an index or bool tensor."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        index = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
        if index.ndim != 1 or (index.dtype == bool and len(index) != len(self)):
            raise IndexError(
                f"PolygonMasks of {len(self)} instances cannot be indexed with an array of shape {index.shape}"
            )
        chosen = np.flatnonzero(index) if index.dtype == bool else index
        return PolygonMasks([self.polygons[int(i)] for i in chosen])

    def __len__(self) -> int:
        return len(self.polygons)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """Yield the list of polygons of each instance."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"


class ROIMasks:
    """N masks of an image as probabilities inside one box each.

    Attributes:
        tensor: (N, M, M) in [0, 1], in the frames of the boxes.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        if tensor.dim() != 3:
            raise InvalidArgumentError(f"ROIMasks need a tensor of shape (N, M, M), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device) -> "ROIMasks":
        """Return the masks on another device."""
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self.tensor.device

    def to_bitmasks(self, boxes: torch.Tensor, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Paste the masks into an image of (height, width) pixels; ``boxes`` (N, 4) are XYXY in its frame."""
        from detectron2.layers.mask_ops import paste_masks_in_image  # that module imports this package

        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))

    def __getitem__(self, item: Any) -> "ROIMasks":
        picked = self.tensor[item]
        if picked.dim() != 3:
            raise IndexError(f"ROIMasks indexed with {item!r} gives shape {tuple(picked.shape)}, not (N, M, M)")
        return ROIMasks(picked)

    def __len__(self) -> int:
        return len(self.tensor)
