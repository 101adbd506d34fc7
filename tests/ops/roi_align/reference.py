"""A slow reference of :func:`d2_maskrcnn.ops.multilevel_roi_align`, independent of the fast implementations.

It is written from the papers (ROIAlign: arXiv:1703.06870, section 3; levels: arXiv:1612.03144, equation 1), one sample
after the other, with coordinates in Python's double precision. Autograd differentiates it.
"""

import math
from collections.abc import Sequence

import torch


def reference_roi_align(
    features: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    output_size: tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_box_size: float = 224.0,
    canonical_level: int = 2,
) -> torch.Tensor:
    """Pool boxes; arguments and result are those of :func:`d2_maskrcnn.ops.multilevel_roi_align`."""
    pooled = []
    for image, image_boxes in enumerate(boxes):
        for box in image_boxes.tolist():
            level = box_level(box, len(features), canonical_box_size, canonical_level)
            pooled.append(pool_box(features[level][image], box, output_size, scales[level], sampling_ratio, aligned))
    if not pooled:
        return features[0].new_zeros((0, features[0].shape[1], *output_size))
    return torch.stack(pooled)


def box_level(box: Sequence[float], num_levels: int, canonical_box_size: float, canonical_level: int) -> int:
    """Return the level of a box by equation 1 of the FPN paper, clamped to [0, num_levels - 1]."""
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    if not area > 0:  # also if it is NaN
        return 0
    if area == math.inf:
        return num_levels - 1
    level = math.floor(canonical_level + math.log2(math.sqrt(area) / canonical_box_size))
    return min(max(level, 0), num_levels - 1)


def pool_box(
    feature: torch.Tensor,
    box: Sequence[float],
    output_size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Pool one box (XYXY) from one map (C, H, W) into (C, height, width): each bin is the mean of its samples."""
    if not all(math.isfinite(edge) for edge in box):
        return feature.new_zeros((feature.shape[0], *output_size))
    x1, y1, x2, y2 = (edge * scale - (0.5 if aligned else 0.0) for edge in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:  # the legacy operator makes boxes at least one feature cell wide
        width, height = max(width, 1.0), max(height, 1.0)
    rows = [
        sample_positions(y1, height, output_size[0], bin_index, sampling_ratio) for bin_index in range(output_size[0])
    ]
    columns = [
        sample_positions(x1, width, output_size[1], bin_index, sampling_ratio) for bin_index in range(output_size[1])
    ]
    bins = [mean_of_samples(feature, ys, xs) for ys in rows for xs in columns]
    return torch.stack(bins, dim=1).unflatten(1, output_size)


def sample_positions(start: float, length: float, num_bins: int, bin_index: int, sampling_ratio: int) -> list[float]:
    """Return where a bin is sampled along one axis, in feature cells; the center of cell i is at i."""
    bin_length = length / num_bins
    count = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_length), 0)
    return [start + bin_index * bin_length + (i + 0.5) * bin_length / count for i in range(count)]


def mean_of_samples(feature: torch.Tensor, ys: list[float], xs: list[float]) -> torch.Tensor:
    """Return the mean (C,) of the bilinear samples on the grid ys x xs; a bin without samples is zero."""
    total = feature.new_zeros(feature.shape[0])
    for y in ys:
        for x in xs:
            total = total + bilinear(feature, y, x)
    return total / max(len(ys) * len(xs), 1)


def bilinear(feature: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Return the map's value (C,) at (y, x): the border's up to one cell outside, zero further outside."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return feature.new_zeros(feature.shape[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = feature[:, top, left] * (1 - dx) + feature[:, top, right] * dx
    lower = feature[:, bottom, left] * (1 - dx) + feature[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy
