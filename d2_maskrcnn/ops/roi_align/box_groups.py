"""Boxes in groups of one feature level and a like number of taps, the units in which the portable path works.

Shape shorthand: B boxes of a group, Ph x Pw bins of a box, Ky and Kx taps of a bin along each axis.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from d2_maskrcnn.ops.roi_align.levels import assign_levels
from d2_maskrcnn.ops.roi_align.spec import PoolingSpec, image_indices, index_dtype
from d2_maskrcnn.ops.roi_align.taps import AxisGeometry, AxisTaps, axis_geometry, axis_taps, samples_inside

FEW_SAMPLES = 8  # along a bin: boxes with more, which are rare, go through apart from the others
MANY_SAMPLES = 1 << 17  # of one bin of all boxes of a part, along an axis


class BoxGroup(NamedTuple):
    """Boxes of one level, and the taps of their bins: cell = row + column, weight = row weight * column weight."""

    level: int
    boxes: torch.Tensor  # (B,) int64, places among all boxes
    rows: torch.Tensor  # (B, Ph, Ky) index of the table row at which a row of cells begins
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
        """Some of its boxes."""
        return BoxGroup(self.level, *(field[start:stop] for field in self[1:]))


def box_groups(
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
    dtype: torch.dtype,
    filling: int = 0,
) -> Iterator[BoxGroup]:
    """All boxes (M, 4), in groups of one level and a like number of taps.

    ``filling`` is how many taps that are there only to fill up take as long as a group of its own.
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
    for part, samples_y, samples_x in by_samples(along_y, along_x, spec):
        taps_y = axis_taps(along_y.select(part), spec.output_size[0], samples_y)
        taps_x = axis_taps(along_x.select(part), spec.output_size[1], samples_x)
        yield from by_taps(
            part, levels[part], images[part] * heights[part], widths[part], taps_y, taps_x, num_cells, filling
        )


def by_samples(
    along_y: AxisGeometry, along_x: AxisGeometry, spec: PoolingSpec
) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Boxes with like numbers of samples: their places, and bounds for the samples of a bin along y and x.

    :func:`axis_taps` needs memory for as many samples as the largest box of a part has, so large ones go apart.
    """
    num_boxes, device = len(along_y.start), along_y.start.device
    if num_boxes == 0:
        return
    if spec.sampling_ratio > 0:
        yield torch.arange(num_boxes, device=device), spec.sampling_ratio, spec.sampling_ratio
        return
    inside_y, inside_x = samples_inside(along_y), samples_inside(along_x)
    most = torch.maximum(inside_y, inside_x).clamp(min=FEW_SAMPLES).log2().ceil()  # (M,) power of two
    for power in most.unique().tolist():
        part = (most == power).nonzero().flatten()
        step = max(MANY_SAMPLES >> int(power), 1)
        for start in range(0, len(part), step):
            some = part[start : start + step]
            yield some, max(int(inside_y[some].max()), 1), max(int(inside_x[some].max()), 1)


def by_taps(
    boxes: torch.Tensor,
    levels: torch.Tensor,
    first_rows: torch.Tensor,
    widths: torch.Tensor,
    taps_y: AxisTaps,
    taps_x: AxisTaps,
    num_cells: int,
    filling: int,
) -> Iterator[BoxGroup]:
    """Groups of one level and a like number of taps, so that few taps are there only to fill up."""
    index = index_dtype(num_cells)
    rows = (taps_y.cells + first_rows.to(index)[:, None, None]) * widths.to(index)[:, None, None]
    kinds, kind, counts = pack_kind(levels, taps_y.used, taps_x.used).unique(return_inverse=True, return_counts=True)
    filled_up = merge_kinds(kinds.tolist(), counts.tolist(), rows.shape[1] * taps_x.cells.shape[1], filling)
    key, order = kinds.new_tensor(filled_up)[kind].sort(stable=True)
    fields = [field.index_select(0, order) for field in (boxes, rows, taps_y.weights, taps_x.cells, taps_x.weights)]
    kinds, counts = key.unique_consecutive(return_counts=True)
    start = 0
    for packed, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        some = slice(start, start + count)
        level, used_y, used_x = unpack_kind(packed)
        places, rows, row_weights, columns, column_weights = (field[some] for field in fields)
        yield BoxGroup(
            level,
            places,
            rows[..., :used_y],
            row_weights[..., :used_y],
            columns[..., :used_x],
            column_weights[..., :used_x],
        )
        start += count


def pack_kind(level: torch.Tensor, used_y: torch.Tensor, used_x: torch.Tensor) -> torch.Tensor:
    """What the boxes of a group have in common, their level and taps along y and x, as one integer each."""
    return (level << 40) | (used_y << 20) | used_x


def unpack_kind(kind: int) -> tuple[int, int, int]:
    """Level and taps along y and x."""
    return kind >> 40, kind >> 20 & 0xFFFFF, kind & 0xFFFFF


def merge_kinds(kinds: Sequence[int], counts: Sequence[int], num_bins: int, filling: int) -> list[int]:
    """For each kind, of which there are ``counts`` boxes, the one of the group that they go into.

    That is another of the same level, with no fewer taps along either axis, if this takes fewer than ``filling`` more
    taps; of several the one with the fewest.
    """
    sizes, boxes = [unpack_kind(kind) for kind in kinds], list(counts)
    taps = [used_y * used_x for _, used_y, used_x in sizes]
    target = list(range(len(kinds)))
    order = sorted(target, key=lambda i: (sizes[i][0], taps[i]))
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            if sizes[j][0] != sizes[i][0] or (taps[j] - taps[i]) * boxes[i] * num_bins >= filling:
                break
            if sizes[j][1] >= sizes[i][1] and sizes[j][2] >= sizes[i][2]:
                target[i] = j
                boxes[j] += boxes[i]
                break
    for i in reversed(order):  # a target may itself have gone into another
        target[i] = target[target[i]]
    return [kinds[i] for i in target]
