"""Batches whose elements all belong to one group."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

__all__ = ["GroupedBatchSampler"]


class GroupedBatchSampler(Sampler):
    """Collect the indices of a sampler into batches of one group each, in the order of the sampler.

    Args:
        sampler: yields indices.
        group_ids: the group of each index.
        batch_size: indices per batch.

    Raises:
        ValueError: ``sampler`` is not a PyTorch sampler.
    """

    def __init__(self, sampler: Sampler, group_ids: list[int] | np.ndarray, batch_size: int) -> None:
        if not isinstance(sampler, Sampler):
            raise ValueError(f"sampler must be a torch.utils.data.Sampler, got {sampler!r}")
        self.sampler, self.batch_size = sampler, batch_size
        self.group_ids = np.asarray(group_ids)
        if self.group_ids.ndim != 1:
            raise ValueError(f"group_ids must be a list of integers, got an array of shape {self.group_ids.shape}")

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[int, list[int]] = defaultdict(list)
        for index in self.sampler:
            group = int(self.group_ids[index])
            waiting[group].append(index)
            if len(waiting[group]) == self.batch_size:
                yield waiting.pop(group)
