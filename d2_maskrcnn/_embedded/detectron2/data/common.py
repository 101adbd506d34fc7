"""Dataset wrappers: mapping, serialization, sharding between workers, grouping by aspect ratio."""

from __future__ import annotations

import contextlib
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

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetFromList",
    "MapDataset",
    "ToIterableDataset",
    "set_default_dataset_from_list_serialize_method",
]

logger = logging.getLogger(__name__)


class _MapIterableDataset(IterableDataset):
    """:class:`MapDataset` of an iterable dataset: results that are None are skipped."""

    def __init__(self, dataset: Iterable[Any], map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (result for result in map(self._map_func, self._dataset) if result is not None)


class MapDataset(Dataset):
    """Apply ``map_func`` to the elements of a dataset when they are read.

    If ``map_func`` returns None, the element is skipped and replaced by a random one of those not known to be skipped.
    The result for an iterable dataset is iterable as well, and skipped elements are not replaced.
    """

    def __new__(cls, dataset: Any, map_func: Callable[[Any], Any]) -> Any:
        """Create a dataset of the same kind, with indices or iterable."""
        if isinstance(dataset, IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[Any, Callable[[Any], Any]]:
        return self._dataset, self._map_func

    def __init__(self, dataset: Any, map_func: Callable[[Any], Any]) -> None:
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # spawned workers get lambdas too, with cloudpickle installed
        self._skipped: set[int] = set()
        self._rng = random.Random(42)  # not the global one: skipping must not change its sequence

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
            raise RuntimeError(f"the mapper returned None for all {len(self)} elements of the dataset.")
        logger.warning("The mapper skipped element %d of %d, which is replaced by a random one.", asked, len(self))
        return self._rng.choice(candidates)


class _SerializedList:
    """A list stored as one byte tensor and one tensor of offsets.

    Worker processes copy a list of Python objects page by page as reference counts change. A tensor has a single
    reference count: forked workers keep sharing its memory, and spawned ones receive it through shared memory.
    """

    def __init__(self, elements: list[Any]) -> None:
        pickles = [np.frombuffer(pickle.dumps(element, protocol=-1), dtype=np.uint8) for element in elements]
        ends = np.cumsum([len(data) for data in pickles], dtype=np.int64)
        self._ends = torch.from_numpy(ends)
        self._bytes = torch.from_numpy(np.concatenate(pickles) if pickles else np.empty(0, dtype=np.uint8))
        logger.info("Serialized %d records into %.2f MiB.", len(elements), self._bytes.numel() / 1024**2)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = int(self._ends[index - 1]) if index > 0 else 0
        return pickle.loads(self._bytes[start : int(self._ends[index])].numpy().data)


_default_serialization: Callable[[list[Any]], Any] = _SerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(func: Callable[[list[Any]], Any]) -> Iterator[None]:
    """Let ``func`` convert the lists of every :class:`DatasetFromList` that is created in the ``with`` block."""
    global _default_serialization
    before, _default_serialization = _default_serialization, func
    try:
        yield
    finally:
        _default_serialization = before


class DatasetFromList(Dataset):
    """A dataset of the elements of a list.

    Args:
        lst: the elements.
        copy: whether elements are copied when they are read, so that they can be modified. Serialized elements are
            copies in any case.
        serialize: whether the elements are pickled into one buffer that all worker processes share; or a function that
            converts the list to another sequence.
    """

    def __init__(self, lst: list[Any], copy: bool = True, serialize: bool | Callable[[list[Any]], Any] = True) -> None:
        self._copy = copy
        self._serialize = bool(serialize)
        convert = serialize if callable(serialize) else _default_serialization
        self._lst: Any = convert(lst) if serialize else lst

    def __len__(self) -> int:
        return len(self._lst)

    def __getitem__(self, index: int) -> Any:
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} elements.")
        element = self._lst[position]
        return copy_module.deepcopy(element) if self._copy and not self._serialize else element


def _every_nth_chunk(items: Iterable[Any], chunk_size: int, start: int, step: int) -> Iterator[Any]:
    """Divide ``items`` into chunks of ``chunk_size`` and yield the items of chunks ``start``, ``start + step``, ..."""
    iterator = iter(items)
    for number in itertools.count():
        chunk = list(itertools.islice(iterator, chunk_size))
        if not chunk:
            return
        if number % step == start:
            yield from chunk


class ToIterableDataset(IterableDataset):
    """Iterate over a dataset in the order of a sampler, inside the worker processes.

    Args:
        dataset: a dataset with indices.
        sampler: yields indices, endlessly for training.
        shard_sampler: whether the indices are divided between the workers; False if the sampler does that itself.
        shard_chunk_size: number of consecutive indices that a worker takes at a time. If it is the loader's batch size,
            batches are the same for any number of workers.

    Raises:
        TypeError: ``dataset`` has no indices, or ``sampler`` is not a sampler.
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
    """Group elements into batches of only wide or only tall images, which need less padding.

    Args:
        dataset: yields dicts with ``"width"`` and ``"height"``.
        batch_size: elements per batch; batches are lists.
    """

    def __init__(self, dataset: Iterable[dict[str, Any]], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}.")
        self.dataset = dataset
        self.batch_size = batch_size

        self._buckets: list[list[dict[str, Any]]] = [[], []]  # tall or square images, wide images

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for element in self.dataset:
            wide = int(element["width"] > element["height"])
            self._buckets[wide].append(element)
            if len(self._buckets[wide]) == self.batch_size:
                batch, self._buckets[wide] = self._buckets[wide], []
                yield batch


__getattr__ = lookup(__name__)
