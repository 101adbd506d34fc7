"""Settings of a pooling call and the assignment of boxes to pyramid levels, common to all backends."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class PoolingSpec(NamedTuple):
    """The settings of :func:`d2_maskrcnn.ops.multilevel_roi_align` in the form that the backends take."""

    output_size: tuple[int, int]  # bins along y and x
    scales: tuple[float, ...]  # feature cells per input pixel of each level, finest first
    sampling_ratio: int  # samples along a bin; 0 takes one per cell that the bin covers, rounded up
    aligned: bool  # whether scaled boxes are shifted by half a cell (ROIAlignV2)
    canonical_box_size: float  # side in pixels of the box that belongs to canonical_level
    canonical_level: int  # index of that level, finest 0


def level_thresholds(num_levels: int, canonical_box_size: float, canonical_level: int) -> list[float]:
    """Return the smallest sqrt(area) in pixels of a box that belongs to level 1, 2, ... or a coarser one."""
    return [canonical_box_size * 2.0 ** (level - canonical_level) for level in range(1, num_levels)]


def assign_levels(
    boxes: torch.Tensor, num_levels: int, canonical_box_size: float = 224.0, canonical_level: int = 2
) -> torch.Tensor:
    """Assign each box to a pyramid level by its size (arXiv:1612.03144, equation 1).

    The level is ``floor(canonical_level + log2(sqrt(w * h) / canonical_box_size))``, clamped. It is computed by
    comparing sqrt(w * h) with each level's threshold, which is exact at the boundaries in any precision.

    Args:
        boxes: (M, 4) XYXY in pixels of the network input. A box of negative or NaN area gets the finest level.
        num_levels: number of levels, finest first, each at half the resolution of the previous one.
        canonical_box_size: side in pixels of the square box that belongs to ``canonical_level``.
        canonical_level: index of that level, finest 0; may be outside the available range.

    Returns:
        (M,) int64 in [0, num_levels - 1].
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()  # (M,)
    levels = torch.zeros_like(size, dtype=torch.int64)
    for threshold in level_thresholds(num_levels, canonical_box_size, canonical_level):
        levels = levels + (size >= threshold)
    return levels


def index_dtype(largest: int) -> torch.dtype:
    """Return int32 for indices up to ``largest`` where it suffices: half the memory traffic of int64."""
    return torch.int32 if largest <= torch.iinfo(torch.int32).max else torch.int64


def image_indices(boxes_per_image: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the image index of each box, (M,) int64."""
    counts = torch.tensor(list(boxes_per_image), dtype=torch.int64)
    return torch.repeat_interleave(counts).to(device)


def coordinate_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Return the type of coordinates and weights: float64 if one of the tensors has it, otherwise float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
