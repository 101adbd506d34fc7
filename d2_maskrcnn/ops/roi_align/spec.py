"""What is the same for every box of one pooling call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class PoolingSpec(NamedTuple):
    """The settings of :func:`d2_maskrcnn.ops.multilevel_roi_align`, as every backend gets them."""

    output_size: tuple[int, int]  # bins along y, along x
    scales: tuple[float, ...]  # feature cells per input pixel, one for each level, finest first
    sampling_ratio: int  # samples along a bin; 0 for one for each cell that the bin covers, rounded up
    aligned: bool  # a cell's centre, not its corner, is at its index
    canonical_box_size: float  # side in pixels of the box that belongs to canonical_level
    canonical_level: int  # index among the levels, finest 0


def index_dtype(largest: int) -> torch.dtype:
    """The integer type for indices up to ``largest``: narrow ones take half the memory traffic."""
    return torch.int32 if largest <= torch.iinfo(torch.int32).max else torch.int64


def image_indices(boxes_per_image: Sequence[int], device: torch.device) -> torch.Tensor:
    """Index (M,) int64 of the image of each box."""
    counts = torch.tensor(list(boxes_per_image), dtype=torch.int64)
    return torch.repeat_interleave(counts).to(device)


def coordinate_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Coordinates and weights are computed in float32 whatever the features are, or in float64 where a tensor is."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
