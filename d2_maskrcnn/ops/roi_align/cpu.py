"""ROIAlign over all levels without compiled code: weighted sums of table rows, on any device.

ROIAlign is linear in the features, so a bin is a weighted sum of rows of the (cells x channels) table that
channels-last memory already is. ``embedding_bag`` computes such sums on all cores with vector instructions, in float32
also for half types. The gradient is the same thing turned round: the gradient of a cell is a weighted sum of rows of
the bins' gradients.

Results come some megabytes at a time, so that intermediate ones stay in the cache and in memory that the allocator
hands out again and again.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.nn.functional import embedding_bag, pad

from d2_maskrcnn.ops.roi_align.box_groups import BoxGroup, box_groups
from d2_maskrcnn.ops.roi_align.memory import empty_buffer, zero_buffer
from d2_maskrcnn.ops.roi_align.spec import PoolingSpec, coordinate_dtype, index_dtype
from d2_maskrcnn.ops.roi_align.tap_lists import TapList, list_taps, split_weights

# Results of one embedding_bag call. Each call is a hand-over to other threads, which takes long on a busy machine;
# beside the long lists of a gradient, though, malloc would fetch new pages for each large result.
CHUNK_BYTES, GRADIENT_CHUNK_BYTES = 16 << 20, 4 << 20
CHUNK_TAPS = 1 << 20
TRANSPOSED_CELLS = 4096  # of an NCHW map, at a time
# Taps that only fill up a group which take as long as one group more: in pooling; in the gradient, which sorts them.
FILLING, GRADIENT_FILLING = 8192, 1024


def pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pools boxes (M, 4) from features [(N, C, Hi, Wi)]: (M, C, Ph, Pw) in channels-last memory."""
    channels, (height, width) = features[0].shape[1], spec.output_size
    pooled = empty_buffer((len(boxes), height, width, channels), features[0])
    rows = wide(pooled.flatten(1))
    shapes, dtype = [feature.shape for feature in features], coordinate_dtype(boxes, *features)
    groups = box_groups(shapes, boxes, boxes_per_image, spec, dtype, FILLING)
    tables: dict[int, torch.Tensor] = {}
    for chunk in chunks(groups, height * width * channels * pooled.element_size()):
        level = chunk[0].level
        if level not in tables:
            tables[level] = as_table(features[level])
        sums = weighted_sums(tables[level], list_taps(chunk, pooled.dtype))  # (boxes of the chunk * Ph * Pw, C)
        places = torch.cat([group.boxes for group in chunk])
        rows.index_copy_(0, places, wide(sums.view(len(places), -1)))
    return pooled.permute(0, 3, 1, 2)


def chunks(groups: Iterable[BoxGroup], bytes_per_box: int) -> Iterator[list[BoxGroup]]:
    """Groups of one level, or parts of them, whose results and taps stay near ``CHUNK_BYTES`` and ``CHUNK_TAPS``."""
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


def wide(rows: torch.Tensor) -> torch.Tensor:
    """The same memory (M, D) as fewer, wider elements: copies of rows go element by element, whatever these are."""
    row_bytes = rows.shape[1] * rows.element_size()
    for dtype in (torch.complex128, torch.int64, torch.int32, torch.int16):
        if row_bytes % dtype.itemsize == 0:
            return rows.view(dtype)
    return rows


def as_table(feature: torch.Tensor) -> torch.Tensor:
    """The (N * H * W, C) table of a feature map (N, C, H, W): a view of channels-last memory, a copy of any other."""
    images, channels, height, width = feature.shape
    cells_last = feature.detach().permute(0, 2, 3, 1)
    if cells_last.is_contiguous():
        return cells_last.view(-1, channels)
    if not feature.is_contiguous():
        return empty_buffer(cells_last.shape, feature).copy_(cells_last).view(-1, channels)
    table = empty_buffer((images, height * width, channels), feature)
    for rows, planes in zip(table, feature.detach().view(images, channels, -1), strict=True):
        for start in range(0, len(rows), TRANSPOSED_CELLS):  # twice as fast as in one piece, which leaves the cache
            some = slice(start, start + TRANSPOSED_CELLS)
            rows[some].copy_(planes[:, some].t())
    return table.view(-1, channels)


def weighted_sums(table: torch.Tensor, taps: TapList) -> torch.Tensor:
    """Row i of the result: ``sum(weights[j] * table[rows[j]])`` over j from ``ends[i]`` to ``ends[i + 1]``."""
    return embedding_bag(
        taps.rows, table, taps.ends, mode="sum", per_sample_weights=taps.weights, include_last_offset=True
    )


def gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Gradients [(N, C, Hi, Wi)] of the features, in channels-last memory, from those of the bins (M, C, Ph, Pw).

    Every run gives the same bits: the taps of a cell are added in an order that depends on the boxes alone.
    """
    table = as_table(grad)  # (M * Ph * Pw, C)
    sizes = [n * height * width for n, _, height, width in shapes]  # in cells
    first_cells = [sum(sizes[:level]) for level in range(len(sizes) + 1)]
    dtype = coordinate_dtype(boxes, grad)
    groups = [
        group._replace(rows=group.rows.to(index_dtype(first_cells[-1])) + first_cells[group.level])
        for group in box_groups(shapes, boxes, boxes_per_image, spec, dtype, GRADIENT_FILLING)
    ]
    found = [zero_buffer((size, table.shape[1]), table) for size in sizes]
    if groups:
        cells, taps = turn_round(groups, len(table), spec)
        taps = split_weights(taps, table.dtype)
        borders = torch.searchsorted(cells, cells.new_tensor(first_cells)).tolist()
        for gradient, first_cell, first, last in zip(found, first_cells, borders, borders[1:], strict=False):
            level_taps = taps._replace(ends=taps.ends[first : last + 1])
            fill_gradient(gradient, cells[first:last] - first_cell, table, level_taps)
    return [
        gradient.view(n, height, width, c).permute(0, 3, 1, 2)
        for gradient, (n, c, height, width) in zip(found, shapes, strict=True)
    ]


def turn_round(groups: list[BoxGroup], num_bins: int, spec: PoolingSpec) -> tuple[torch.Tensor, TapList]:
    """The taps of the groups' bins, listed for each cell instead of for each bin; their rows are then bins.

    Returns:
        The cells (S,) that have taps, ascending, and the list of their S sums.
    """
    taps = list_taps(groups, groups[0].row_weights.dtype)
    bins_of_box = torch.arange(spec.output_size[0] * spec.output_size[1], device=taps.rows.device)
    bins = torch.cat([group.boxes for group in groups])[:, None] * len(bins_of_box) + bins_of_box
    bins = bins.view(-1).to(index_dtype(max(num_bins, 2 * len(taps.rows))))  # twice: see split_weights
    bins = torch.repeat_interleave(bins, taps.ends.diff(), output_size=len(taps.rows))  # of each tap
    cells, order = taps.rows.sort(stable=True)
    cells, counts = cells.unique_consecutive(return_counts=True)
    ends = pad(counts.cumsum(0), (1, 0)).to(bins.dtype)
    return cells.to(torch.int64), TapList(bins.index_select(0, order), taps.weights.index_select(0, order), ends)


def fill_gradient(gradient: torch.Tensor, cells: torch.Tensor, table: torch.Tensor, taps: TapList) -> None:
    """Fills in the ``cells`` (S,) of a level's gradient (cells, C): the sums of weight * bin gradient over their
    taps."""
    step = max(GRADIENT_CHUNK_BYTES // (table.shape[1] * table.element_size()), 1)
    starts = [*range(0, len(cells), step), len(cells)]
    first_taps = taps.ends[torch.tensor(starts, device=table.device)].tolist()
    rows = wide(gradient)
    for i, start in enumerate(starts[:-1]):
        some, (first, last) = slice(start, starts[i + 1]), first_taps[i : i + 2]
        ends = taps.ends[start : starts[i + 1] + 1] - first
        sums = weighted_sums(table, TapList(taps.rows[first:last], taps.weights[first:last], ends))
        rows.index_copy_(0, cells[some], wide(sums))
