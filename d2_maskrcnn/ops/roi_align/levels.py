"""Which pyramid level each box is pooled from: equation 1 of the FPN paper (arXiv:1612.03144, section 4.2)."""

import torch


def level_thresholds(num_levels: int, canonical_box_size: float, canonical_level: int) -> list[float]:
    """For each level but the finest: least sqrt(area) in pixels of a box that it or a coarser one takes."""
    return [canonical_box_size * 2.0 ** (level - canonical_level) for level in range(1, num_levels)]


def assign_levels(
    boxes: torch.Tensor, num_levels: int, canonical_box_size: float = 224.0, canonical_level: int = 2
) -> torch.Tensor:
    """Index of the level of each box: ``floor(canonical_level + log2(sqrt(w * h) / canonical_box_size))``, clamped.

    The logarithm is never taken: the box's size is compared with each level's threshold, which gives the same levels
    and is exact at the borders in any precision. A box whose area is negative or not a number gets the finest level.

    Args:
        boxes: (M, 4) XYXY, absolute pixels of the network's input frame.
        num_levels: levels that there are, finest first, each of half the resolution of the one before.
        canonical_box_size: side in pixels of the square box that belongs to ``canonical_level``.
        canonical_level: index (from the finest, 0) of that level; where it lies outside the range, levels are clamped.

    Returns:
        (M,) int64, in [0, num_levels - 1].
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()  # (M,)
    levels = torch.zeros_like(size, dtype=torch.int64)
    for threshold in level_thresholds(num_levels, canonical_box_size, canonical_level):
        levels = levels + (size >= threshold)
    return levels
