"""Bilinear samples of ROIAlign as weighted feature cells ("taps"), one axis at a time.

The weight of a feature cell in a bin is the product of a weight along y and one along x, so all that depends on a box
is two short vectors for each bin. Samples of a bin that fall on the same cell are merged here, before the product is
taken.

Shape shorthand: B boxes, P bins along the axis, S samples in a bin, K taps in a bin.
"""

from typing import NamedTuple

import torch
from torch.nn.functional import pad

# PyTorch splits an operation on more elements between its threads. Handing these small ones out takes as long as doing
# them, and far longer where other programs keep the cores busy.
SERIAL_ELEMENTS = 32767


class AxisGeometry(NamedTuple):
    """Where boxes lie along one axis of their own feature level, in feature cells (a cell's centre is an integer)."""

    start: torch.Tensor  # (B,) the box's first edge
    bin_length: torch.Tensor  # (B,) negative where the box is inside out
    samples: torch.Tensor  # (B,) samples in a bin: whole numbers, in the dtype of the others
    size: torch.Tensor  # (B,) feature cells that the level has along the axis

    def slice(self, start: int, stop: int) -> "AxisGeometry":
        """The boxes from ``start`` to ``stop``."""
        return AxisGeometry(*(field[start:stop] for field in self))

    def select(self, index: torch.Tensor) -> "AxisGeometry":
        """The boxes at ``index``."""
        return AxisGeometry(*(field.index_select(0, index) for field in self))


class AxisTaps(NamedTuple):
    """The taps of each bin along one axis; a bin with fewer than K is filled up with weight zero at its last cell."""

    cells: torch.Tensor  # (B, P, K) int32, in [0, size - 1]
    weights: torch.Tensor  # (B, P, K) the sum over a bin is 1 where all samples are inside
    used: torch.Tensor  # (B,) int64, in [1, K]: taps of the box's fullest bin

    def fill_up(self, num_slots: int) -> "AxisTaps":
        """The same with ``num_slots`` for K."""
        missing = num_slots - self.cells.shape[2]
        last = self.cells[:, :, -1:].expand(-1, -1, missing)
        return AxisTaps(torch.cat([self.cells, last], dim=2), pad(self.weights, (0, missing)), self.used)


def axis_geometry(
    edges: torch.Tensor, scale: torch.Tensor, size: torch.Tensor, num_bins: int, sampling_ratio: int, aligned: bool
) -> AxisGeometry:
    """Args:
        edges: (B, 2) first and last edge of each box in input pixels; scale: (B,) of its level; size: (B,) of its level
        in cells.
        sampling_ratio: samples along a bin; 0 takes one for each cell that the bin covers, rounded up.
        aligned: a cell's centre, not its corner, is at its index (ROIAlignV2).
    """  # fmt: skip
    start, end = (edges * scale[:, None] - (0.5 if aligned else 0.0)).unbind(1)
    length = end - start
    if not aligned:
        length = length.clamp(min=1.0)
    bin_length = length / torch.full_like(length, num_bins)  # GPUs multiply by the reciprocal of a plain number
    if sampling_ratio > 0:
        samples = torch.full_like(bin_length, sampling_ratio)
    else:
        samples = bin_length.ceil().clamp(min=0).nan_to_num(0.0, posinf=0.0)
    return AxisGeometry(start, bin_length, samples, size.to(bin_length.dtype))


def samples_inside(geometry: AxisGeometry) -> torch.Tensor:
    """Upper bound (B,) of the samples of one bin that can lie on the feature map: what :func:`axis_taps` has to look
    at.

    Adaptive samples are more than half a cell apart, so a bin of a box far larger than the map has most of them
    outside.
    """
    return torch.minimum(geometry.samples, 2 * geometry.size + 8)


def axis_taps(geometry: AxisGeometry, num_bins: int, max_samples: int) -> AxisTaps:
    """Merged taps of every bin. ``max_samples`` bounds :func:`samples_inside`, or is the ratio where that is fixed."""
    step = max(SERIAL_ELEMENTS // (num_bins * (max_samples + 2)), 1)
    starts = range(0, max(len(geometry.start), 1), step)
    parts = [merge_samples(geometry.slice(start, start + step), num_bins, max_samples) for start in starts]
    num_slots = max(part.cells.shape[2] for part in parts)
    return AxisTaps(*(torch.cat(fields) for fields in zip(*(part.fill_up(num_slots) for part in parts), strict=True)))


def merge_samples(geometry: AxisGeometry, num_bins: int, max_samples: int) -> AxisTaps:
    """:func:`axis_taps` of some boxes."""
    position, inside = sample_positions(geometry, num_bins, max_samples)  # (B, P, S) each
    last_cell = geometry.size[:, None, None] - 1
    position = torch.minimum(position.clamp(min=0), last_cell).nan_to_num(0.0)
    cell = position.to(torch.int32)  # rounds down: there are none below zero
    low = cell.to(position.dtype)
    high_weight = position - low
    scale = inside / geometry.samples.clamp(min=1)[:, None, None]  # a bin is the mean of its samples
    # Samples ascend, and each touches two neighbouring cells: it shares both, one or none with the sample before.
    step = low.diff(dim=2).clamp(0, 2).to(torch.int64)
    slot = pad(step.cumsum(2), (1, 0))  # (B, P, S) of the lower cell; the upper one's is next to it
    used = slot[:, :, -1].amax(dim=1) + 2 if slot.shape[0] else slot.new_zeros(0)
    num_slots = int(used.max()) if len(used) else 1
    weights = torch.zeros((*slot.shape[:2], num_slots), dtype=low.dtype, device=slot.device)
    upper = torch.minimum(cell + 1, last_cell.to(torch.int32))
    # The same cell is written to a slot more than once, always with the same value.
    cells = upper[:, :, -1:].repeat(1, 1, num_slots).scatter_(2, slot + 1, upper).scatter_(2, slot, cell)
    add_in_order(weights, slot, (1 - high_weight) * scale)
    add_in_order(weights, slot + 1, high_weight * scale)
    return AxisTaps(cells, weights, used)


def add_in_order(weights: torch.Tensor, slot: torch.Tensor, values: torch.Tensor) -> None:
    """``weights[b, p, slot[b, p, s]] += values[b, p, s]``, s by s, which gives the same bits on every run."""
    for s in range(slot.shape[2]):
        weights.scatter_add_(2, slot[:, :, s : s + 1], values[:, :, s : s + 1])


def sample_positions(geometry: AxisGeometry, num_bins: int, max_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (B, P, S) of the bins' samples, ascending, and whether they count: at most one cell off the map."""
    start, bin_length, samples, size = (field[:, None, None] for field in geometry)
    first = torch.arange(num_bins, dtype=start.dtype, device=start.device)
    bin_start = start + first[:, None] * bin_length  # (B, P, 1)
    sample = torch.arange(max_samples, dtype=start.dtype, device=start.device).expand(1, 1, -1)
    if bool((geometry.samples > max_samples).any()):  # those before the map's edge are passed over
        passed = ((-1 - bin_start) / bin_length * samples - 2).floor().nan_to_num(0.0)
        sample = sample + torch.minimum(passed, samples - max_samples).clamp(min=0)
    exists = sample < samples
    sample = torch.minimum(sample, (samples - 1).clamp(min=0))
    sample = torch.where(bin_length < 0, samples - 1 - sample, sample)
    position = bin_start + (sample + 0.5) * bin_length / samples
    return position, exists & (position >= -1) & (position <= size)
