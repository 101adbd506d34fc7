"""Taps of bins, one bin after the other: what ``embedding_bag`` works on.

Shape shorthand: B boxes of a group, Ph x Pw bins of a box, Ky and Kx taps of a bin along each axis.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from d2_maskrcnn.ops.box_groups import BoxGroup
from d2_maskrcnn.ops.spec import index_dtype

FILL_ELEMENTS = 1 << 17  # taps that are worked out at a time


class TapList(NamedTuple):
    """T taps of S weighted sums of table rows; those of sum i are from ``ends[i]`` to ``ends[i + 1]``."""

    rows: torch.Tensor  # (T,) int32 (int64 where a table is too large)
    weights: torch.Tensor  # (T,)
    ends: torch.Tensor  # (S + 1,) dtype of rows


def list_taps(groups: Sequence[BoxGroup], dtype: torch.dtype) -> TapList:
    """The taps of all bins of the groups' boxes; a sum is a bin, a row is a cell.

    Args:
        groups: of one level.
        dtype: of the table. Where it is narrower than the weights, each tap is there twice, see :func:`halves`.
    """
    first = groups[0]
    copies = 2 if dtype.itemsize < first.row_weights.dtype.itemsize else 1
    sizes = [len(group.boxes) * group.taps_per_box * copies for group in groups]
    index = torch.promote_types(first.rows.dtype, index_dtype(sum(sizes)))
    rows = first.rows.new_empty(sum(sizes), dtype=index)
    weights = first.row_weights.new_empty(sum(sizes), dtype=dtype if copies == 2 else None)
    ends, start = [], 0
    for group, size in zip(groups, sizes, strict=True):
        some, bag = slice(start, start + size), group.taps_per_bin * copies
        fill(group, rows[some], weights[some], copies)
        ends.append(torch.arange(start, start + size, bag, dtype=index, device=rows.device))
        start += size
    return TapList(rows, weights, torch.cat([*ends, rows.new_tensor([start])]))


def fill(group: BoxGroup, rows: torch.Tensor, weights: torch.Tensor, copies: int) -> None:
    """Fills in the taps of a group, some boxes at a time, so that what is between stays in the cache."""
    size = group.taps_per_box * copies  # of a box
    step = max(FILL_ELEMENTS // size, 1)
    pairs = tap_pairs(group)
    repeated = tuple(places.repeat(copies) for places in pairs)
    for start in range(0, len(group.boxes), step):
        part, some = group.slice(start, start + step), slice(start * size, (start + step) * size)
        fill_outer(torch.add, part.rows, part.columns, repeated, rows[some])
        if copies == 1:
            fill_outer(torch.mul, part.row_weights, part.column_weights, pairs, weights[some])
        else:
            fill_halves(part, pairs, weights[some])


def tap_pairs(group: BoxGroup) -> tuple[torch.Tensor, ...]:
    """Places (Ky * Kx,) along y and along x of the taps of a bin."""
    taps = torch.arange(group.taps_per_bin, device=group.rows.device)
    return taps // group.columns.shape[2], taps % group.columns.shape[2]


def fill_outer(
    operation: Callable[..., torch.Tensor],
    along_y: torch.Tensor,
    along_x: torch.Tensor,
    pairs: tuple[torch.Tensor, ...],
    out: torch.Tensor,
) -> None:
    """Fills ``out`` with ``operation`` on the ``pairs`` of what each bin has along y (B, Ph, Ky) and x (B, Pw, Kx).

    The operands are laid out pair by pair first, which is little beside the result: broadcast over Ky and Kx,
    PyTorch's innermost loop would be as short as Kx, and all of it five times slower.
    """
    along_y, along_x = along_y.index_select(2, pairs[0]), along_x.index_select(2, pairs[1])
    shape = (len(along_y), along_y.shape[1], along_x.shape[1], along_y.shape[2])
    operation(along_y[:, :, None], along_x[:, None], out=out.view(shape))


def fill_halves(group: BoxGroup, pairs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
    """Fills ``out`` with, for each bin, both :func:`halves` of its taps' weights."""
    product = group.row_weights.new_empty(out.numel() // 2)
    fill_outer(torch.mul, group.row_weights, group.column_weights, pairs, product)
    torch.stack(halves(product.view(-1, group.taps_per_bin), out.dtype), dim=1, out=out.view(-1, 2, group.taps_per_bin))


def halves(weights: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two tensors of a narrow ``dtype`` whose sum is ``weights`` to twice that type's precision.

    ``embedding_bag`` wants weights of the table's type but sums in float32, so taking each row twice, once with the
    rounded weight and once with what the rounding left, keeps interpolation weights from being rounded like features.
    """
    high = weights.to(dtype)
    return high, (weights - high).to(dtype)


def split_weights(taps: TapList, dtype: torch.dtype) -> TapList:
    """The list for a table of type ``dtype``, with each tap there twice if that is narrower than the weights."""
    if dtype.itemsize >= taps.weights.dtype.itemsize:
        return taps
    weights = torch.stack(halves(taps.weights, dtype), dim=1).view(-1)
    return TapList(torch.stack([taps.rows, taps.rows], dim=1).view(-1), weights, taps.ends * 2)
