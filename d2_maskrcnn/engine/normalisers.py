"""What the losses of a part of a batch count in the loss of the whole batch.

The losses of Mask R-CNN are sums divided by numbers of the batch: images (RPN), sampled proposals (class, box),
proposals that are objects (mask). A batch that is computed in parts, by several processes or one part after the other,
has the same loss and gradient as one that is computed at once if each part's loss is weighted by its share of that
number.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from detectron2.utils import comm

_BY_ROIS = ("loss_cls", "loss_box_reg")
_BY_FOREGROUND = ("loss_mask",)


class Counts(NamedTuple):
    """The numbers that a part's losses were divided by."""

    images: int
    rois: int
    foreground: int


class Part(NamedTuple):
    """Some images of a batch, and the seed of each."""

    images: list[dict[str, Any]]
    seeds: list[int]


def split_batch(batch: list[dict[str, Any]], number: int, seeds: list[int]) -> list[Part]:
    """``batch`` in ``number`` parts that differ by one image at most, fewer where it has not that many images."""
    number = min(number, len(batch))
    ends = [len(batch) * i // number for i in range(number + 1)]
    return [Part(batch[a:b], seeds[a:b]) for a, b in itertools.pairwise(ends)]


def part_weights(parts: Sequence[Counts], device: torch.device) -> list[torch.Tensor]:
    """The weight of each part of this process in the whole batch of all processes, times the number of processes.

    The gradients and losses of processes are averaged, hence that factor. With several processes all must call it.

    Returns:
        for each part (3,) float32: for losses by images, by proposals, by foreground. Where the whole batch has none
        of a kind, that loss is 0 in every part, and its weight does not matter.
    """
    mine = torch.tensor([list(part) for part in parts], dtype=torch.float64, device=device)  # (P, 3)
    total = mine.sum(0)
    if comm.get_world_size() > 1:
        dist.all_reduce(total)
    return list((mine / total.clamp(min=1) * comm.get_world_size()).float())


def weigh(losses: dict[str, torch.Tensor], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each loss times its weight. A loss of an unknown name counts by images."""
    return {name: loss * weights[_kind(name)] for name, loss in losses.items()}


def _kind(name: str) -> int:
    return 1 if name in _BY_ROIS else 2 if name in _BY_FOREGROUND else 0
