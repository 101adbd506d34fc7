"""Samplers for distributed runs.

The training samplers are endless. All processes generate the same sequence from the same seed, and each takes every
``world_size``-th index, from its rank on: no communication is needed, and no index is repeated within a pass.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from detectron2.utils import comm

logger = logging.getLogger(__name__)


class _EndlessSampler(Sampler):
    """Base class of the training samplers: a common seed, and each process's part of the sequence."""

    def __init__(self, shuffle: bool, seed: int | None) -> None:
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed)

    def _infinite_indices(self) -> Iterator[int]:
        """Yield the sequence of all processes together."""
        raise NotImplementedError


class TrainingSampler(_EndlessSampler):
    """Yield endlessly permutations of ``range(size)``.

    Args:
        size: number of elements of the dataset.
        shuffle: False repeats ``0, 1, ..., size - 1``.
        seed: of the shuffling, the same in all processes; None for a random one that all processes share.

    Raises:
        TypeError: ``size`` is not an int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None) -> None:
        if not isinstance(size, int):
            raise TypeError(f"{type(self).__name__}: size must be an int, got {size!r}.")
        if size <= 0:
            raise ValueError(f"{type(self).__name__}: size must be positive, got {size}.")
        self._size = size
        super().__init__(shuffle, seed)
        logger.info("%s: %d elements, seed %d.", type(self).__name__, size, self._seed)

    def _infinite_indices(self) -> Iterator[int]:
        generator = self._generator()
        while True:
            if self._shuffle:
                yield from torch.randperm(self._size, generator=generator).tolist()
            else:
                yield from range(self._size)


class RandomSubsetTrainingSampler(TrainingSampler):
    """Yield endlessly permutations of a random subset.

    Args:
        size: number of elements of the dataset.
        subset_ratio: share of the dataset, in (0, 1].
        shuffle: whether each pass has a new order.
        seed_shuffle: of the order; None for a random one that all processes share.
        seed_subset: of the subset; None likewise.

    Raises:
        ValueError: ``subset_ratio`` is out of range or selects no element.
    """

    def __init__(
        self,
        size: int,
        subset_ratio: float,
        shuffle: bool = True,
        seed_shuffle: int | None = None,
        seed_subset: int | None = None,
    ) -> None:
        super().__init__(size, shuffle, seed_shuffle)
        count = int(size * subset_ratio)
        if not 0 < subset_ratio <= 1 or count == 0:
            raise ValueError(f"subset_ratio must be in (0, 1] and select one of {size} elements, got {subset_ratio}.")
        seed = int(comm.shared_random_seed() if seed_subset is None else seed_subset)
        self._subset = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]

    def _infinite_indices(self) -> Iterator[int]:
        generator = self._generator()
        while True:
            order = torch.randperm(len(self._subset), generator=generator) if self._shuffle else slice(None)
            yield from self._subset[order].tolist()


class RepeatFactorTrainingSampler(_EndlessSampler):
    """Repeat images with rare categories (Gupta et al., LVIS, arXiv:1908.03195, appendix B.2).

    Args:
        repeat_factors: (N,) mean number of repetitions of each element per pass; the fractional part is the probability
            of one more.
        shuffle: whether each pass has a new order.
        seed: None for a random one that all processes share.

    Raises:
        ValueError: there are no factors, one is negative, or all are 0.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None) -> None:
        factors = torch.as_tensor(repeat_factors, dtype=torch.float32)
        if factors.numel() == 0 or not bool((factors >= 0).all()) or not bool((factors > 0).any()):
            raise ValueError(f"repeat factors must be non-negative and not all zero, got {factors.tolist()[:10]}.")
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(factors)  # (N,)
        self._fraction = factors - self._whole  # (N,)

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict[str, Any]], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Return each image's factor: that of its rarest category, max(1, sqrt(threshold / frequency)).

        Args:
            dataset_dicts: records with ``"annotations"``.
            repeat_thresh: frequency below which a category is repeated, as a share of the images.
            sqrt: False omits the square root.

        Returns:
            (N,) float32 factors, at least 1.
        """
        categories = [{anno["category_id"] for anno in record["annotations"]} for record in dataset_dicts]
        images = Counter(itertools.chain.from_iterable(categories))
        factor = {}
        for category, count in images.items():
            ratio = repeat_thresh * len(dataset_dicts) / count
            factor[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        return torch.tensor([max((factor[c] for c in present), default=1.0) for present in categories])

    def _one_pass(self, generator: torch.Generator) -> torch.Tensor:
        chance = torch.rand(len(self._fraction), generator=generator)
        repeats = self._whole + (chance < self._fraction).float()
        return torch.arange(len(repeats)).repeat_interleave(repeats.long())

    def _infinite_indices(self) -> Iterator[int]:
        generator = self._generator()
        while True:
            indices = self._one_pass(generator)
            order = torch.randperm(len(indices), generator=generator) if self._shuffle else slice(None)
            yield from indices[order].tolist()


class InferenceSampler(Sampler):
    """Yield a range of consecutive indices in each process; together they cover ``range(size)`` exactly once.

    Args:
        size: number of elements of the dataset.

    Raises:
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int) -> None:
        if size <= 0:
            raise ValueError(f"InferenceSampler: size must be positive, got {size}.")
        self._size = size
        self._local_indices = self._get_local_indices(size, comm.get_world_size(), comm.get_rank())

    @staticmethod
    def _get_local_indices(total_size: int, world_size: int, rank: int) -> range:
        share, left_over = divmod(total_size, world_size)  # the first `left_over` processes have one more
        begin = share * rank + min(rank, left_over)
        return range(begin, begin + share + (rank < left_over))

    def __iter__(self) -> Iterator[int]:
        return iter(self._local_indices)

    def __len__(self) -> int:
        return len(self._local_indices)
