"""The portable implementation of ROIAlign: weighted sums of table rows, on any device, without compiled code.

ROIAlign is linear in the features, so a bin is a weighted sum of rows of the (cells x channels) table that
channels-last memory already is. ``embedding_bag`` computes such sums with vector instructions on all cores, in float32
also for half-precision types. The gradient is the transpose: the gradient of a cell is a weighted sum of rows of the
bins' gradients.

Results are computed a few megabytes at a time, so that intermediate tensors stay in the cache and in memory that the
allocator reuses.

Shape shorthand: B boxes of a group, Ph x Pw bins of a box, Ky and Kx taps of a bin along each axis.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import embedding_bag, pad

from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, coordinate_dtype, index_dtype
from d2_maskrcnn.ops.roi_align.memory import empty_buffer, zero_buffer
from d2_maskrcnn.ops.roi_align.taps import SERIAL_ELEMENTS, BoxGroup, box_groups

# Result size of one embedding_bag call. Each call wakes other threads, which takes long on a busy machine. With the
# long tap lists of a gradient, however, malloc would fetch new pages for each large result.
CHUNK_BYTES, GRADIENT_CHUNK_BYTES = 16 << 20, 4 << 20
CHUNK_TAPS = 1 << 20
TRANSPOSED_CELLS = 4096  # of an NCHW map at a time
# Number of padding taps that take as long as one more group; less in the gradient, which also sorts them.
PADDING_COST, GRADIENT_PADDING_COST = 8192, 1024


class TapList(NamedTuple):
    """T taps of S weighted sums of table rows; sum i takes the taps from ``ends[i]`` to ``ends[i + 1]``."""

    rows: torch.Tensor  # (T,) int32, or int64 for a very large table
    weights: torch.Tensor  # (T,)
    ends: torch.Tensor  # (S + 1,) dtype of rows


def pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pool boxes from a feature pyramid.

    Args:
        features: (N, C, Hi, Wi) of each level.
        boxes: (M, 4) XYXY in pixels of the network input, image after image.
        boxes_per_image: N counts whose sum is M.
        spec: the settings.

    Returns:
        (M, C, Ph, Pw) in channels-last memory.
    """
    channels, (height, width) = features[0].shape[1], spec.output_size
    pooled = empty_buffer((len(boxes), height, width, channels), features[0])
    rows = widen_elements(pooled.flatten(1))
    shapes, dtype = [feature.shape for feature in features], coordinate_dtype(boxes, *features)
    groups = box_groups(shapes, boxes, boxes_per_image, spec, dtype, PADDING_COST)
    tables: dict[int, torch.Tensor] = {}
    for chunk in split_into_chunks(groups, height * width * channels * pooled.element_size()):
        level = chunk[0].level
        if level not in tables:
            tables[level] = as_table(features[level])
        sums = weighted_sums(tables[level], list_taps(chunk, pooled.dtype))  # (boxes of the chunk * Ph * Pw, C)
        indices = torch.cat([group.boxes for group in chunk])
        rows.index_copy_(0, indices, widen_elements(sums.view(len(indices), -1)))
    return pooled.permute(0, 3, 1, 2)


def gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Compute the features' gradients from those of the bins.

    Every run gives the same bits: the taps of a cell are added in an order that depends on the boxes alone.

    Args:
        grad: (M, C, Ph, Pw) gradients of the bins.
        shapes: (N, C, Hi, Wi) of each level.
        boxes, boxes_per_image, spec: see :func:`pool`.

    Returns:
        (N, C, Hi, Wi) of each level, in channels-last memory.
    """
    table = as_table(grad)  # (M * Ph * Pw, C)
    sizes = [n * height * width for n, _, height, width in shapes]  # in cells
    first_cells = [sum(sizes[:level]) for level in range(len(sizes) + 1)]
    dtype = coordinate_dtype(boxes, grad)
    groups = [
        group._replace(rows=group.rows.to(index_dtype(first_cells[-1])) + first_cells[group.level])
        for group in box_groups(shapes, boxes, boxes_per_image, spec, dtype, GRADIENT_PADDING_COST)
    ]
    results = [zero_buffer((size, table.shape[1]), table) for size in sizes]
    if groups:
        cells, taps = transpose_taps(groups, len(table), spec)
        taps = split_weights(taps, table.dtype)
        borders = torch.searchsorted(cells, cells.new_tensor(first_cells)).tolist()
        for gradient, first_cell, first, last in zip(results, first_cells, borders, borders[1:], strict=False):
            level_taps = taps._replace(ends=taps.ends[first : last + 1])
            fill_gradient(gradient, cells[first:last] - first_cell, table, level_taps)
    return [
        gradient.view(n, height, width, c).permute(0, 3, 1, 2)
        for gradient, (n, c, height, width) in zip(results, shapes, strict=True)
    ]


def split_into_chunks(groups: Iterable[BoxGroup], bytes_per_box: int) -> Iterator[list[BoxGroup]]:
    """Yield groups of one level, or parts of them, with about ``CHUNK_BYTES`` of results and ``CHUNK_TAPS`` taps."""
    chunk: list[BoxGroup] = []
    room = 1.0
    for group in groups:
        cost = max(bytes_per_box / CHUNK_BYTES, group.taps_per_box / CHUNK_TAPS)  # of a box
        start = 0
        while start < len(group.boxes):
            if chunk and (chunk[0].level != group.level or room < cost):
                yield chunk
                chunk, room = [], 1.0
            part = group.slice(start, start + max(int(room / cost), 1))
            chunk.append(part)
            start += len(part.boxes)
            room -= cost * len(part.boxes)
    if chunk:
        yield chunk


def widen_elements(rows: torch.Tensor) -> torch.Tensor:
    """View (M, D) rows as fewer, wider elements: rows are copied element by element, whatever the elements are."""
    row_bytes = rows.shape[1] * rows.element_size()
    for dtype in (torch.complex128, torch.int64, torch.int32, torch.int16):
        if row_bytes % dtype.itemsize == 0:
            return rows.view(dtype)
    return rows


def as_table(feature: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) features as (N * H * W, C): a view of channels-last memory, a copy of any other."""
    images, channels, height, width = feature.shape
    cells_last = feature.detach().permute(0, 2, 3, 1)
    if cells_last.is_contiguous():
        return cells_last.view(-1, channels)
    # A GPU has no cache to exceed, and launching a kernel for each of 1,000 boxes takes longer than the copy itself.
    if feature.device.type != "cpu" or not feature.is_contiguous():
        return empty_buffer(cells_last.shape, feature).copy_(cells_last).view(-1, channels)
    table = empty_buffer((images, height * width, channels), feature)
    for rows, planes in zip(table, feature.detach().view(images, channels, -1), strict=True):
        for start in range(0, len(rows), TRANSPOSED_CELLS):  # twice as fast as one copy, which exceeds the cache
            part = slice(start, start + TRANSPOSED_CELLS)
            rows[part].copy_(planes[:, part].t())
    return table.view(-1, channels)


def weighted_sums(table: torch.Tensor, taps: TapList) -> torch.Tensor:
    """Compute ``sum(weights[j] * table[rows[j]])`` over the taps j of each sum, (S, C)."""
    return embedding_bag(
        taps.rows, table, taps.ends, mode="sum", per_sample_weights=taps.weights, include_last_offset=True
    )


def list_taps(groups: Sequence[BoxGroup], dtype: torch.dtype) -> TapList:
    """List the taps of all bins of the groups' boxes; a sum is a bin, a row is a cell.

    Args:
        groups: of one level.
        dtype: of the table. If it is narrower than the weights, each tap is listed twice, see :func:`halves`.
    """
    first = groups[0]
    copies = 2 if dtype.itemsize < first.row_weights.dtype.itemsize else 1
    sizes = [len(group.boxes) * group.taps_per_box * copies for group in groups]
    index = torch.promote_types(first.rows.dtype, index_dtype(sum(sizes)))
    rows = first.rows.new_empty(sum(sizes), dtype=index)
    weights = first.row_weights.new_empty(sum(sizes), dtype=dtype if copies == 2 else None)
    ends, start = [], 0
    for group, size in zip(groups, sizes, strict=True):
        part, length = slice(start, start + size), group.taps_per_bin * copies
        fill_taps(group, rows[part], weights[part], copies)
        ends.append(torch.arange(start, start + size, length, dtype=index, device=rows.device))
        start += size
    return TapList(rows, weights, torch.cat([*ends, rows.new_tensor([start])]))


def fill_taps(group: BoxGroup, rows: torch.Tensor, weights: torch.Tensor, copies: int) -> None:
    """Write a group's taps: all pairs of a tap along y and a tap along x of each bin.

    The taps of each axis are repeated pair by pair first, which is little data. Broadcasting over Ky and Kx instead
    would make PyTorch's innermost loop as short as Kx, five times slower.
    """
    pair = torch.arange(group.taps_per_bin, device=rows.device)
    along_y, along_x = pair // group.columns.shape[2], pair % group.columns.shape[2]
    first = group.rows.index_select(2, along_y.repeat(copies))[:, :, None]  # (B, Ph, 1, copies * Ky * Kx)
    columns = group.columns.index_select(2, along_x.repeat(copies))[:, None]  # (B, 1, Pw, copies * Ky * Kx)
    row_weights = group.row_weights.index_select(2, along_y)[:, :, None]
    column_weights = group.column_weights.index_select(2, along_x)[:, None]
    shape = (*group.rows.shape[:2], *columns.shape[2:])
    rows, weights = rows.view(shape), weights.view(shape)
    step = max(SERIAL_ELEMENTS // (group.taps_per_box * copies), 1)
    for start in range(0, len(group.boxes), step):
        part = slice(start, start + step)
        torch.add(first[part], columns[part], out=rows[part])
        if copies == 1:
            torch.mul(row_weights[part], column_weights[part], out=weights[part])
        else:
            torch.cat(halves(row_weights[part] * column_weights[part], weights.dtype), dim=3, out=weights[part])


def halves(weights: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors of a narrow ``dtype`` whose sum is ``weights`` to twice that type's precision.

    ``embedding_bag`` requires weights of the table's type but sums in float32. Each row is taken twice, with the
    rounded weight and with the rounding error, so that interpolation weights are not rounded like features.
    """
    high = weights.to(dtype)
    return high, (weights - high).to(dtype)


def split_weights(taps: TapList, dtype: torch.dtype) -> TapList:
    """Convert a list for a table of type ``dtype``: if that is narrower than the weights, list each tap twice."""
    if dtype.itemsize >= taps.weights.dtype.itemsize:
        return taps
    weights = torch.stack(halves(taps.weights, dtype), dim=1).view(-1)
    return TapList(torch.stack([taps.rows, taps.rows], dim=1).view(-1), weights, taps.ends * 2)


def transpose_taps(groups: list[BoxGroup], num_bins: int, spec: PoolingSpec) -> tuple[torch.Tensor, TapList]:
    """List the groups' taps by cell instead of by bin.

    Returns:
        The cells (S,) that have taps, ascending, and the list of their S sums, whose rows are bins.
    """
    taps = list_taps(groups, groups[0].row_weights.dtype)
    bins_of_box = torch.arange(spec.output_size[0] * spec.output_size[1], device=taps.rows.device)
    bins = torch.cat([group.boxes for group in groups])[:, None] * len(bins_of_box) + bins_of_box
    bins = bins.view(-1).to(index_dtype(max(num_bins, 2 * len(taps.rows))))  # 2: see split_weights
    bins = torch.repeat_interleave(bins, taps.ends.diff(), output_size=len(taps.rows))  # of each tap
    cells, order = taps.rows.sort(stable=True)
    cells, counts = cells.unique_consecutive(return_counts=True)
    ends = pad(counts.cumsum(0), (1, 0)).to(bins.dtype)
    return cells.to(torch.int64), TapList(bins.index_select(0, order), taps.weights.index_select(0, order), ends)


def fill_gradient(gradient: torch.Tensor, cells: torch.Tensor, table: torch.Tensor, taps: TapList) -> None:
    """Write the ``cells`` (S,) of a level's gradient (cells, C): sums of weight * bin gradient over their taps."""
    step = max(GRADIENT_CHUNK_BYTES // (table.shape[1] * table.element_size()), 1)
    starts = [*range(0, len(cells), step), len(cells)]
    first_taps = taps.ends[torch.tensor(starts, device=table.device)].tolist()
    rows = widen_elements(gradient)
    for i, start in enumerate(starts[:-1]):
        part, (first, last) = slice(start, starts[i + 1]), first_taps[i : i + 2]
        ends = taps.ends[start : starts[i + 1] + 1] - first
        sums = weighted_sums(table, TapList(taps.rows[first:last], taps.weights[first:last], ends))
        rows.index_copy_(0, cells[part], widen_elements(sums))
