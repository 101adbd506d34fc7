"""Taps of bins, one bin after the other: what ``embedding_bag`` works on.

Shape shorthand: B boxes of a group, Ph x Pw bins of a box, Ky and Kx taps of a bin along each axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from d2_maskrcnn.ops.roi_align.box_groups import BoxGroup
from d2_maskrcnn.ops.roi_align.spec import index_dtype
from d2_maskrcnn.ops.roi_align.taps import SERIAL_ELEMENTS


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
    """Fills in the taps of a group: all pairs of what each of its bins has along y and along x.

    Both are laid out pair by pair first, which is little beside the result: broadcast over Ky and Kx, PyTorch's
    innermost loop would be as short as Kx, and all of it five times slower.
    """
    pair = torch.arange(group.taps_per_bin, device=rows.device)
    along_y, along_x = pair // group.columns.shape[2], pair % group.columns.shape[2]
    first = group.rows.index_select(2, along_y.repeat(copies))[:, :, None]  # (B, Ph, 1, copies * Ky * Kx)
    columns = group.columns.index_select(2, along_x.repeat(copies))[:, None]  # (B, 1, Pw, copies * Ky * Kx)
    down = group.row_weights.index_select(2, along_y)[:, :, None]
    across = group.column_weights.index_select(2, along_x)[:, None]
    shape = (*group.rows.shape[:2], *columns.shape[2:])
    rows, weights = rows.view(shape), weights.view(shape)
    step = max(SERIAL_ELEMENTS // (group.taps_per_box * copies), 1)
    for start in range(0, len(group.boxes), step):
        some = slice(start, start + step)
        torch.add(first[some], columns[some], out=rows[some])
        if copies == 1:
            torch.mul(down[some], across[some], out=weights[some])
        else:
            torch.cat(halves(down[some] * across[some], weights.dtype), dim=3, out=weights[some])


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
