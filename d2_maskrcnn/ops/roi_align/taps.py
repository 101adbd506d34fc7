"""Bilinear samples of ROIAlign as weighted feature cells ("taps"), for groups of boxes.

The weight of a feature cell in a bin is the product of a weight along y and one along x, so a box is described by two
short lists per bin. Samples of a bin that touch the same cell are merged per axis, before the product is taken.

Shape shorthand: B boxes, P bins along one axis (Ph, Pw), S samples in a bin, K taps in a bin along one axis (Ky, Kx).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, assign_levels, image_indices, index_dtype

# PyTorch distributes operations on more elements among its threads. For small ones that takes as long as the work
# itself, and far longer while other programs use the cores.
SERIAL_ELEMENTS = 32767
FEW_SAMPLES = 8  # along a bin; boxes with more, which are rare, are processed separately
MANY_SAMPLES = 1 << 17  # of one bin position, over all boxes processed together, along one axis


class AxisGeometry(NamedTuple):
    """Boxes along one axis of their feature level, in feature cells; the center of cell i is at i."""

    start: torch.Tensor  # (B,) the box's first edge
    bin_length: torch.Tensor  # (B,) negative for an inverted box
    samples: torch.Tensor  # (B,) samples in a bin: whole numbers, in the dtype of the other fields
    size: torch.Tensor  # (B,) cells of the level along the axis

    def slice(self, start: int, stop: int) -> "AxisGeometry":
        """Return the boxes from ``start`` to ``stop``."""
        return AxisGeometry(*(field[start:stop] for field in self))

    def select(self, index: torch.Tensor) -> "AxisGeometry":
        """Return the boxes at ``index``."""
        return AxisGeometry(*(field.index_select(0, index) for field in self))


class AxisTaps(NamedTuple):
    """The taps of each bin along one axis; shorter bins are padded with their last cell at weight 0."""

    cells: torch.Tensor  # (B, P, K) int32 in [0, size - 1]
    weights: torch.Tensor  # (B, P, K) sum to 1 over a bin if all its samples are inside the map
    used: torch.Tensor  # (B,) int64 in [1, K]: taps of the box's longest bin

    def pad_to(self, num_taps: int) -> "AxisTaps":
        """Return the same taps with K = ``num_taps``."""
        missing = num_taps - self.cells.shape[2]
        last = self.cells[:, :, -1:].expand(-1, -1, missing)
        return AxisTaps(torch.cat([self.cells, last], dim=2), pad(self.weights, (0, missing)), self.used)


class BoxGroup(NamedTuple):
    """Boxes of one level with their taps: table row = row + column, weight = row weight * column weight."""

    level: int
    boxes: torch.Tensor  # (B,) int64 indices of the boxes in the call
    rows: torch.Tensor  # (B, Ph, Ky) table row at which a row of cells starts
    row_weights: torch.Tensor  # (B, Ph, Ky)
    columns: torch.Tensor  # (B, Pw, Kx)
    column_weights: torch.Tensor  # (B, Pw, Kx)

    @property
    def taps_per_bin(self) -> int:
        """Ky * Kx."""
        return self.rows.shape[2] * self.columns.shape[2]

    @property
    def taps_per_box(self) -> int:
        """Ph * Pw * Ky * Kx."""
        return self.rows.shape[1] * self.columns.shape[1] * self.taps_per_bin

    def slice(self, start: int, stop: int) -> "BoxGroup":
        """Return the group's boxes from ``start`` to ``stop``."""
        return BoxGroup(self.level, *(field[start:stop] for field in self[1:]))


def box_groups(
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
    dtype: torch.dtype,
    padding_cost: int = 0,
) -> Iterator[BoxGroup]:
    """Yield all boxes in groups of one level and a similar number of taps.

    Args:
        shapes: (N, C, Hi, Wi) of each level.
        boxes: (M, 4) XYXY in pixels of the network input.
        dtype: of coordinates and weights.
        padding_cost: number of padding taps that take as long as one more group.
    """
    boxes = boxes.to(dtype)
    levels = assign_levels(boxes, len(shapes), spec.canonical_box_size, spec.canonical_level)  # (M,)
    scales = torch.tensor(spec.scales, dtype=dtype, device=boxes.device)[levels]
    heights = torch.tensor([shape[2] for shape in shapes], device=boxes.device)[levels]
    widths = torch.tensor([shape[3] for shape in shapes], device=boxes.device)[levels]
    num_cells = max(shape[0] * shape[2] * shape[3] for shape in shapes)
    images = image_indices(boxes_per_image, boxes.device)
    along_y = axis_geometry(boxes[:, 1::2], scales, heights, spec.output_size[0], spec.sampling_ratio, spec.aligned)
    along_x = axis_geometry(boxes[:, 0::2], scales, widths, spec.output_size[1], spec.sampling_ratio, spec.aligned)
    for part, samples_y, samples_x in split_by_samples(along_y, along_x, spec):
        taps_y = axis_taps(along_y.select(part), spec.output_size[0], samples_y)
        taps_x = axis_taps(along_x.select(part), spec.output_size[1], samples_x)
        yield from group_by_taps(
            part, levels[part], images[part] * heights[part], widths[part], taps_y, taps_x, num_cells, padding_cost
        )


def axis_geometry(
    edges: torch.Tensor, scale: torch.Tensor, size: torch.Tensor, num_bins: int, sampling_ratio: int, aligned: bool
) -> AxisGeometry:
    """Convert boxes along one axis to feature cells.

    Args:
        edges: (B, 2) first and last edge of each box in input pixels.
        scale: (B,) cells per input pixel of the box's level.
        size: (B,) cells of the box's level along the axis.
        num_bins: P.
        sampling_ratio, aligned: see :class:`PoolingSpec`.
    """
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


def split_by_samples(
    along_y: AxisGeometry, along_x: AxisGeometry, spec: PoolingSpec
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Yield indices of boxes with a similar number of samples, and bounds of the samples in a bin along y and x.

    :func:`axis_taps` needs memory for the box with the most samples, so boxes with many are kept apart.
    """
    num_boxes, device = len(along_y.start), along_y.start.device
    if num_boxes == 0:
        return
    if spec.sampling_ratio > 0:
        yield torch.arange(num_boxes, device=device), spec.sampling_ratio, spec.sampling_ratio
        return
    inside_y, inside_x = samples_inside(along_y), samples_inside(along_x)
    most = torch.maximum(inside_y, inside_x).clamp(min=FEW_SAMPLES).log2().ceil()  # (M,) exponents of two
    for power in most.unique().tolist():
        part = (most == power).nonzero().flatten()
        step = max(MANY_SAMPLES >> int(power), 1)
        for start in range(0, len(part), step):
            chunk = part[start : start + step]
            yield chunk, max(int(inside_y[chunk].max()), 1), max(int(inside_x[chunk].max()), 1)


def samples_inside(geometry: AxisGeometry) -> torch.Tensor:
    """Return an upper bound (B,) of a bin's samples that can be on the feature map.

    Adaptive samples are more than half a cell apart, so most samples of a box far larger than the map are outside it.
    """
    return torch.minimum(geometry.samples, 2 * geometry.size + 8)


def axis_taps(geometry: AxisGeometry, num_bins: int, max_samples: int) -> AxisTaps:
    """Compute the merged taps of all bins along one axis.

    Args:
        geometry: of B boxes.
        num_bins: P.
        max_samples: bound of :func:`samples_inside`, or the sampling ratio if it is fixed.
    """
    step = max(SERIAL_ELEMENTS // (num_bins * (max_samples + 2)), 1)
    starts = range(0, max(len(geometry.start), 1), step)
    parts = [merge_samples(geometry.slice(start, start + step), num_bins, max_samples) for start in starts]
    num_taps = max(part.cells.shape[2] for part in parts)
    return AxisTaps(*(torch.cat(fields) for fields in zip(*(part.pad_to(num_taps) for part in parts), strict=True)))


def merge_samples(geometry: AxisGeometry, num_bins: int, max_samples: int) -> AxisTaps:
    """Compute :func:`axis_taps` of boxes that fit in one piece."""
    position, inside = sample_positions(geometry, num_bins, max_samples)  # (B, P, S) each
    last_cell = geometry.size[:, None, None] - 1
    position = torch.minimum(position.clamp(min=0), last_cell).nan_to_num(0.0)
    cell = position.to(torch.int32)  # floor, as positions are not negative
    low = cell.to(position.dtype)
    high_weight = position - low
    scale = inside / geometry.samples.clamp(min=1)[:, None, None]  # a bin is the mean of its samples
    # Samples ascend, and each touches two adjacent cells: it shares both, one or none with the previous sample.
    step = low.diff(dim=2).clamp(0, 2).to(torch.int64)
    slot = pad(step.cumsum(2), (1, 0))  # (B, P, S) tap of the lower cell; the upper cell's tap is the next one
    used = slot[:, :, -1].amax(dim=1) + 2 if slot.shape[0] else slot.new_zeros(0)
    num_taps = int(used.max()) if len(used) else 1
    weights = torch.zeros((*slot.shape[:2], num_taps), dtype=low.dtype, device=slot.device)
    upper = torch.minimum(cell + 1, last_cell.to(torch.int32))
    # A tap is written more than once, always with the same cell.
    cells = upper[:, :, -1:].repeat(1, 1, num_taps).scatter_(2, slot + 1, upper).scatter_(2, slot, cell)
    add_in_order(weights, slot, (1 - high_weight) * scale)
    add_in_order(weights, slot + 1, high_weight * scale)
    return AxisTaps(cells, weights, used)


def add_in_order(weights: torch.Tensor, slot: torch.Tensor, values: torch.Tensor) -> None:
    """Add ``values[b, p, s]`` to ``weights[b, p, slot[b, p, s]]``, s by s, so that every run gives the same bits."""
    for s in range(slot.shape[2]):
        weights.scatter_add_(2, slot[:, :, s : s + 1], values[:, :, s : s + 1])


def sample_positions(geometry: AxisGeometry, num_bins: int, max_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples' positions, ascending, and whether they are at most one cell outside the map: (B, P, S)."""
    start, bin_length, samples, size = (field[:, None, None] for field in geometry)
    first = torch.arange(num_bins, dtype=start.dtype, device=start.device)
    bin_start = start + first[:, None] * bin_length  # (B, P, 1)
    sample = torch.arange(max_samples, dtype=start.dtype, device=start.device).expand(1, 1, -1)
    if bool((geometry.samples > max_samples).any()):  # skip samples before the map's edge
        skipped = ((-1 - bin_start) / bin_length * samples - 2).floor().nan_to_num(0.0)
        sample = sample + torch.minimum(skipped, samples - max_samples).clamp(min=0)
    exists = sample < samples
    sample = torch.minimum(sample, (samples - 1).clamp(min=0))
    sample = torch.where(bin_length < 0, samples - 1 - sample, sample)
    position = bin_start + (sample + 0.5) * bin_length / samples
    return position, exists & (position >= -1) & (position <= size)


def group_by_taps(
    boxes: torch.Tensor,
    levels: torch.Tensor,
    first_rows: torch.Tensor,
    widths: torch.Tensor,
    taps_y: AxisTaps,
    taps_x: AxisTaps,
    num_cells: int,
    padding_cost: int,
) -> Iterator[BoxGroup]:
    """Yield groups of one level and a similar number of taps, so that little is padding.

    Args:
        boxes, levels: (B,) index in the call and level of each box.
        first_rows: (B,) first row of cells of the box's image in its level.
        widths: (B,) width of the box's level in cells.
        num_cells: cells of the largest level.
    """
    index = index_dtype(num_cells)
    rows = (taps_y.cells + first_rows.to(index)[:, None, None]) * widths.to(index)[:, None, None]
    kinds, kind, counts = pack_kind(levels, taps_y.used, taps_x.used).unique(return_inverse=True, return_counts=True)
    merged = merge_kinds(kinds.tolist(), counts.tolist(), rows.shape[1] * taps_x.cells.shape[1], padding_cost)
    key, order = kinds.new_tensor(merged)[kind].sort(stable=True)
    fields = [field.index_select(0, order) for field in (boxes, rows, taps_y.weights, taps_x.cells, taps_x.weights)]
    kinds, counts = key.unique_consecutive(return_counts=True)
    start = 0
    for packed, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        level, used_y, used_x = unpack_kind(packed)
        indices, *taps = (field[start : start + count] for field in fields)
        along_y, along_x = (field[..., :used_y] for field in taps[:2]), (field[..., :used_x] for field in taps[2:])
        yield BoxGroup(level, indices, *along_y, *along_x)
        start += count


def pack_kind(level: torch.Tensor, used_y: torch.Tensor, used_x: torch.Tensor) -> torch.Tensor:
    """Pack level, taps along y and taps along x of each box into one integer, its kind."""
    return (level << 40) | (used_y << 20) | used_x


def unpack_kind(kind: int) -> tuple[int, int, int]:
    """Return level, taps along y and taps along x."""
    return kind >> 40, kind >> 20 & 0xFFFFF, kind & 0xFFFFF


def merge_kinds(kinds: Sequence[int], counts: Sequence[int], num_bins: int, padding_cost: int) -> list[int]:
    """Merge small groups into others.

    A group is merged into one of the same level with no fewer taps along either axis if that takes fewer than
    ``padding_cost`` padding taps; of several candidates, into the one with the fewest taps.

    Returns:
        For each kind, of ``counts`` boxes of ``num_bins`` bins each, the kind that its boxes are padded to.
    """
    sizes, boxes = [unpack_kind(kind) for kind in kinds], list(counts)
    taps = [used_y * used_x for _, used_y, used_x in sizes]
    target = list(range(len(kinds)))
    order = sorted(target, key=lambda i: (sizes[i][0], taps[i]))
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if sizes[j][0] != sizes[i][0] or (taps[j] - taps[i]) * boxes[i] * num_bins >= padding_cost:
                break
            if sizes[j][1] >= sizes[i][1] and sizes[j][2] >= sizes[i][2]:
                target[i] = j
                boxes[j] += boxes[i]
                break
    for i in reversed(order):  # a target may itself have been merged
        target[i] = target[target[i]]
    return [kinds[i] for i in target]
