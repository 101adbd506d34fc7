"""Dataset wrappers: mapping, serialisation into one buffer, sharding between workers, grouping by aspect ratio."""

from __future__ import annotations

import copy as copy_module
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from detectron2._names import lookup
from detectron2.utils.serialize import PicklableWrapper

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


class _MapIterableDataset(IterableDataset):
    """:class:`MapDataset` over something that can only be iterated: results that are None are left out."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (result for result in map(self._map_func, self._dataset) if result is not None)


class MapDataset(Dataset):
    """Applies ``map_func`` to each element of a dataset when it is asked for.

    A ``map_func`` that returns None says "skip this one": another element, drawn from those not known to be skipped,
    takes its place. For an iterable dataset the result is iterable too, and skipped elements are left out.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        """A dataset of the same kind, with indices or iterable, as the one given."""
        if isinstance(dataset, IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        return self._dataset, self._map_func

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # spawned workers get lambdas too, with cloudpickle installed
        self._skipped: set[int] = set()
        self._rng = random.Random(42)  # not the global one, whose draws must not depend on which elements are skipped

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        asked, index = int(index), int(index)
        while (result := self._map_func(self._dataset[index])) is None:
            self._skipped.add(index)
            index = self._draw_replacement(asked)
        return result

    def _draw_replacement(self, asked: int) -> int:
        candidates = [index for index in range(len(self)) if index not in self._skipped]
        if not candidates:
            raise RuntimeError(f"the mapper returned None for every one of the {len(self)} elements of the dataset.")
        logger.warning("The mapper skipped element %d of %d; drawing another one in its place.", asked, len(self))
        return self._rng.choice(candidates)


class _SerializedList:
    """A list kept as one byte tensor and one tensor of offsets.

    A list of Python objects is copied, page by page, into each worker process as reference counts are touched. One
    tensor has one reference count: forked workers go on sharing its pages, and spawned ones get it through shared
    memory.
    """

    def __init__(self, elements: list[Any]) -> None:
        pickles = [np.frombuffer(pickle.dumps(element, protocol=-1), dtype=np.uint8) for element in elements]
        ends = np.cumsum([len(data) for data in pickles], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        self._bytes = torch.from_numpy(np.concatenate(pickles) if pickles else np.empty(0, dtype=np.uint8))
        logger.info("Serialised %d records into %.2f MiB.", len(elements), self._bytes.numel() / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = int(self._ends[index - 1]) if index > 0 else 0
        return pickle.loads(self._bytes[start : int(self._ends[index])].numpy().data)


class DatasetFromList(Dataset):
    """A list as a dataset.

    Args:
        lst: the elements.
        copy: hand out deep copies, so that users may change what they get. Serialised elements are copies anyway.
        serialize: keep the elements pickled in one buffer that all worker processes share; or a function that turns the
            list into another sequence, which is then used instead.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool | Callable[[list[Any]], Any] = True) -> None:
        self._copy = copy
        self._serialize = bool(serialize)
        if callable(serialize):
            self._lst = serialize(lst)
        else:
            self._lst = _SerializedList(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, index: int) -> Any:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} elements.")
        element = self._lst[position]
        return copy_module.deepcopy(element) if self._copy and not self._serialize else element


def _every_nth_chunk(items: Iterable[Any], chunk_size: int, start: int, step: int) -> Iterator[Any]:
    """Cuts ``items`` into chunks of ``chunk_size`` and yields the items of chunks ``start``, ``start + step``, ..."""
    iterator = iter(items)
    for number in itertools.count():
        chunk = list(itertools.islice(iterator, chunk_size))
        if not chunk:
            return
        if number % step == start:
            yield from chunk


class ToIterableDataset(IterableDataset):
    """Iterates over ``dataset`` in the order that ``sampler`` gives, inside the worker processes.

    Args:
        dataset: a dataset with indices.
        sampler: gives indices, without end for training.
        shard_sampler: divide the sampler's indices between the workers; False where the sampler does so by itself.
        shard_chunk_size: how many consecutive indices a worker takes at a time. With the loader's batch size, batches
            are the same for any number of workers.

    Raises:
        TypeError: ``dataset`` has no indices, or ``sampler`` is no sampler.
        ValueError: ``shard_chunk_size`` is not positive.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler, shard_sampler: bool = True, shard_chunk_size: int = 1
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise TypeError(f"expected a dataset with indices, got the iterable {type(dataset).__name__}.")
        if not isinstance(sampler, Sampler):
            raise TypeError(f"expected a torch Sampler, got {type(sampler).__name__}.")
        if shard_chunk_size < 1:
            raise ValueError(f"shard_chunk_size must be positive, got {shard_chunk_size}.")
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def _indices(self) -> Iterable[int]:
        worker = get_worker_info()
        if worker is None or not self.shard_sampler:
            return self.sampler
        return _every_nth_chunk(self.sampler, self.shard_chunk_size, worker.id, worker.num_workers)

    def __iter__(self) -> Iterator[Any]:
        for index in self._indices():
            yield self.dataset[index]


class AspectRatioGroupedDataset(IterableDataset):
    """Groups elements into batches in which all images are wide, or all are not: less padding in each batch.

    Args:
        dataset: yields dicts with ``"width"`` and ``"height"``.
        batch_size: elements of each batch; batches come out as lists.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        waiting: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for element in self.dataset:
            wide = element["width"] > element["height"]
            waiting[wide].append(element)
            if len(waiting[wide]) == self.batch_size:
                batch, waiting[wide] = waiting[wide], []
                yield batch


__getattr__ = lookup(__name__)
