"""ROIAlign over all levels without compiled code: weighted sums of table rows, on any device.

ROIAlign is linear in the features, so a bin is a weighted sum of rows of the (cells x channels) table that
channels-last memory already is. ``embedding_bag`` computes such sums on all cores with vector instructions, in float32
also for half types. The gradient is the same thing turned round: the gradient of a cell is a weighted sum of rows of
the bins' gradients.

Boxes go through in groups of one level and a like number of taps, a few megabytes of results at a time, so that
intermediate results stay in the cache and in memory that the allocator hands out again and again.

Shape shorthand: B boxes of a group, C channels, Ph x Pw bins of a box, Ky and Kx taps of a bin along each axis.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag

from d2_maskrcnn.ops.box_groups import BoxGroup, box_groups
from d2_maskrcnn.ops.memory import empty_buffer
from d2_maskrcnn.ops.spec import PoolingSpec, coordinate_dtype

CHUNK_BYTES = 4 << 20  # results of one embedding_bag call
CHUNK_TAPS = 1 << 20


class Taps(NamedTuple):
    """T taps of any bins, one after the other."""

    cells: torch.Tensor  # (T,) table row
    bins: torch.Tensor  # (T,) index among all M * Ph * Pw bins
    weights: torch.Tensor  # (T,)


def pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pools boxes (M, 4) from features [(N, C, Hi, Wi)]: (M, C, Ph, Pw) in channels-last memory."""
    channels, (height, width) = features[0].shape[1], spec.output_size
    pooled = empty_buffer((len(boxes), height, width, channels), features[0])
    tables: dict[int, torch.Tensor] = {}
    for group in box_groups(
        [f.shape for f in features], boxes, boxes_per_image, spec, coordinate_dtype(boxes, *features)
    ):
        if group.level not in tables:
            tables[group.level] = as_table(features[group.level])
        for chunk in chunks(group, height * width * channels * pooled.element_size()):
            sums = pool_group(tables[group.level], chunk)
            wide(pooled.view(len(boxes), -1)).index_copy_(0, chunk.boxes, wide(sums.view(len(chunk.boxes), -1)))
    return pooled.permute(0, 3, 1, 2)


def wide(rows: torch.Tensor) -> torch.Tensor:
    """The same memory (M, D) as fewer, wider elements: copies of rows go element by element, whatever these are."""
    row_bytes = rows.shape[1] * rows.element_size()
    for dtype in (torch.complex128, torch.int64, torch.int32, torch.int16):
        if row_bytes % dtype.itemsize == 0:
            return rows.view(dtype)
    return rows


def as_table(feature: torch.Tensor) -> torch.Tensor:
    """The (N * H * W, C) table of a feature map (N, C, H, W): a view of channels-last memory, a copy of any other."""
    cells_last = feature.detach().permute(0, 2, 3, 1)
    if not cells_last.is_contiguous():
        cells_last = empty_buffer(cells_last.shape, feature).copy_(cells_last)
    return cells_last.view(-1, feature.shape[1])


def gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Gradients [(N, C, Hi, Wi)] of the features, in channels-last memory, from that of the pooled bins (M, C, Ph, Pw).

    Every run gives the same bits: the taps of a cell are added in an order that depends on the boxes alone.
    """
    table = as_table(grad)  # (M * Ph * Pw, C)
    taps: list[list[Taps]] = [[] for _ in shapes]
    for group in box_groups(shapes, boxes, boxes_per_image, spec, coordinate_dtype(boxes, grad)):
        taps[group.level].append(taps_of(group, spec))
    levels = zip(taps, shapes, strict=True)
    return [level_gradient(level_taps, shape, table).permute(0, 3, 1, 2) for level_taps, shape in levels]


def taps_of(group: BoxGroup, spec: PoolingSpec) -> Taps:
    """All taps of the group's boxes, one after the other."""
    cells = outer(torch.add, group.rows, group.columns)
    weights = outer(torch.mul, group.row_weights, group.column_weights)
    num_bins = spec.output_size[0] * spec.output_size[1]
    bins = group.boxes[:, None] * num_bins + torch.arange(num_bins, device=cells.device)  # (B, Ph * Pw)
    bins = bins.to(cells.dtype).view(*cells.shape[:3], 1, 1, 1).expand_as(cells)
    return Taps(cells.view(-1), bins.reshape(-1), weights.view(-1))


def level_gradient(taps: list[Taps], shape: Sequence[int], table: torch.Tensor) -> torch.Tensor:
    """Gradient (N, H, W, C) of one level: for each cell the sum of weight * gradient of the bin over its taps."""
    num_images, channels, height, width = shape
    if not taps:
        return empty_buffer((num_images, height, width, channels), table).zero_()
    cells, bins, weights = (torch.cat(parts) for parts in zip(*taps, strict=True))
    cells, order = cells.sort(stable=True)
    bins, weights = bins.index_select(0, order), weights.index_select(0, order)
    counts = torch.bincount(cells, minlength=num_images * height * width)
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))  # (cells + 1,)
    if table.dtype.itemsize < weights.dtype.itemsize:
        bins, weights = (
            torch.stack([bins, bins], dim=1).view(-1),
            torch.stack(split(weights, table.dtype), dim=1).view(-1),
        )
        offsets = offsets * 2
    return ragged_sums(table, bins, weights, offsets).view(num_images, height, width, channels)


def ragged_sums(
    table: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Row i of the result: ``sum(weights[j] * table[indices[j]])`` over j from ``offsets[i]`` to ``offsets[i + 1]``."""
    num_bags, channels = len(offsets) - 1, table.shape[1]
    result = empty_buffer((num_bags, channels), table)
    step = max(CHUNK_BYTES // max(channels * table.element_size(), 1), 1)
    starts = list(range(0, num_bags, step))
    for start, first, last in zip(starts, *bounds(offsets, starts), strict=True):
        stop = min(start + step, num_bags)
        result[start:stop] = embedding_bag(
            indices[first:last],
            table,
            (offsets[start : stop + 1] - first).to(indices.dtype),
            mode="sum",
            per_sample_weights=weights[first:last],
            include_last_offset=True,
        )
    return result


def bounds(offsets: torch.Tensor, starts: list[int]) -> tuple[list[int], list[int]]:
    """``offsets`` at the ``starts`` of pieces and at their ends."""
    edges = offsets[torch.tensor([*starts, len(offsets) - 1], device=offsets.device)].tolist()
    return edges[:-1], edges[1:]


def pool_group(table: torch.Tensor, group: BoxGroup) -> torch.Tensor:
    """The bins (B * Ph * Pw, C) of the group's boxes, whose level's table (cells, C) is given."""
    weights = outer(torch.mul, group.row_weights, group.column_weights)
    if table.dtype.itemsize < weights.dtype.itemsize:
        weights = torch.cat(split(weights, table.dtype), dim=3)
    indices = outer(torch.add, group.rows, group.columns, copies=weights.shape[3])
    num_bins = indices.shape[:3].numel()
    return embedding_bag(indices.view(num_bins, -1), table, mode="sum", per_sample_weights=weights.view(num_bins, -1))


def split(weights: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of a narrow ``dtype`` whose sum is ``weights`` to twice that type's precision.

    ``embedding_bag`` wants weights of the table's type but sums in float32, so taking each row twice, once with the
    rounded weight and once with what the rounding left, keeps interpolation weights from being rounded like features.
    """
    high = weights.to(dtype)
    return high, (weights - high).to(dtype)


def chunks(group: BoxGroup, bytes_per_box: int) -> Iterator[BoxGroup]:
    """The group in pieces whose results and taps stay within ``CHUNK_BYTES`` and ``CHUNK_TAPS``."""
    taps_per_box = max(group.rows[0].numel() * group.columns[0].numel(), 1)
    step = max(min(CHUNK_BYTES // max(bytes_per_box, 1), CHUNK_TAPS // taps_per_box), 1)
    for start in range(0, len(group.boxes), step):
        yield group.slice(start, start + step)


def outer(
    operation: Callable[..., torch.Tensor], along_y: torch.Tensor, along_x: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    """``operation`` on all pairs of taps along y (B, Ph, Ky) and x (B, Pw, Kx): (B, Ph, Pw, copies, Ky, Kx)."""
    (num_boxes, height, taps_y), (_, width, taps_x) = along_y.shape, along_x.shape
    shape = (num_boxes, height, width, copies, taps_y, taps_x)
    out = along_y.new_empty(shape)  # given, since it has to be contiguous
    return operation(along_y[:, :, None, None, :, None].expand(shape), along_x[:, None, :, None, None, :], out=out)
