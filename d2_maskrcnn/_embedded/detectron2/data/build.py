"""Build loaders for training and inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from detectron2._names import lookup
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from detectron2.data._dataset_dicts import (
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils import comm, env

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "check_metadata_consistency",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

__getattr__ = lookup(__name__)
logger = logging.getLogger(__name__)

Mapper = Callable[[dict[str, Any]], Any]
Collator = Callable[[list[Any]], Any]


def _sampler_seed(cfg: CfgNode) -> int | None:
    # As in Detectron2, SEED decides the order of the images; there, a negative one does too.
    return cfg.SEED if cfg.SEED >= 0 else None


def _repeat_factor_sampler(cfg: CfgNode, records: Any) -> Sampler:
    node, kind = cfg.DATALOADER, samplers.RepeatFactorTrainingSampler
    factors = kind.repeat_factors_from_category_frequency(records, node.REPEAT_THRESHOLD, node.REPEAT_SQRT)
    return kind(factors, seed=_sampler_seed(cfg))


# DATALOADER.SAMPLER_TRAIN -> function of the config and the records.
_TRAIN_SAMPLERS: dict[str, Callable[[CfgNode, Any], Sampler]] = {
    "TrainingSampler": lambda cfg, records: samplers.TrainingSampler(len(records), seed=_sampler_seed(cfg)),
    "RepeatFactorTrainingSampler": _repeat_factor_sampler,
    "RandomSubsetTrainingSampler": lambda cfg, records: samplers.RandomSubsetTrainingSampler(
        len(records), cfg.DATALOADER.RANDOM_SUBSET_RATIO
    ),
}


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """Return the list of elements as the batch."""
    return list(batch)


def worker_init_reset_seed(worker_id: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators of a worker, differently in each worker."""
    env.seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _only_element(batch: list[Any]) -> Any:
    return batch[0]


def _per_process(total_batch_size: int) -> int:
    size, rest = divmod(total_batch_size, comm.get_world_size())
    if size < 1 or rest:
        raise ValueError(
            f"the total batch size (SOLVER.IMS_PER_BATCH) is {total_batch_size}: expected a positive multiple of the "
            f"number of processes, {comm.get_world_size()}"
        )
    return size


def _ordered(dataset: Any, mapper: Mapper | None, sampler: Sampler | None, default: Callable[[int], Sampler]) -> Any:
    """Return the mapped dataset, and the sampler of a dataset with indices.

    Raises:
        ValueError: a sampler is given for an iterable dataset.
    """
    source = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    if not isinstance(source, IterableDataset):
        sampler = default(len(source)) if sampler is None else sampler
    elif sampler is not None:
        raise ValueError("an iterable dataset has its own order: pass sampler=None")
    return source if mapper is None else MapDataset(source, mapper), sampler


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Return an iterable of training batches, whose order is the same for any number of workers.

    Args:
        dataset: with indices, or iterable. sampler: yields indices; None for an iterable dataset.
        total_batch_size: of all processes together. single_gpu_batch_size: of this process, instead.
        aspect_ratio_grouping: whether a batch has only wide or only tall images; elements are dicts with ``width`` and
            ``height`` then.
        num_workers, prefetch_factor, persistent_workers, pin_memory, **kwargs: see ``torch.utils.data.DataLoader``.
        collate_fn: makes a batch of a list of elements; None keeps the list.
        drop_last: whether an incomplete last batch is skipped.
        seed: of the workers' random generators; None for one from PyTorch's global generator.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes, a dataset with indices has no sampler,
            or an iterable one has one.
    """
    size = single_gpu_batch_size or _per_process(total_batch_size)
    source = _in_order(dataset, sampler, 1 if aspect_ratio_grouping else size)
    options = _worker_options(num_workers, prefetch_factor, seed)
    options |= {"num_workers": num_workers, "persistent_workers": persistent_workers, "pin_memory": pin_memory}
    options |= kwargs
    if not aspect_ratio_grouping:
        return DataLoader(source, size, drop_last=drop_last, collate_fn=collate_fn or trivial_batch_collator, **options)
    grouped = AspectRatioGroupedDataset(DataLoader(source, 1, collate_fn=_only_element, **options), size)
    return MapDataset(grouped, collate_fn) if collate_fn else grouped


def _in_order(dataset: Any, sampler: Sampler | None, chunk: int) -> IterableDataset:
    """Return the elements in the order of the sampler; each worker loads ``chunk`` of them at a time.

    The loader's round over workers then restores the order.
    """
    iterable = isinstance(dataset, IterableDataset)
    if iterable == (sampler is not None):
        raise ValueError(f"{'an iterable dataset takes no' if iterable else 'a dataset with indices needs a'} sampler")
    return dataset if sampler is None else ToIterableDataset(dataset, sampler, shard_chunk_size=chunk)


def _worker_options(num_workers: int, prefetch_factor: int | None, seed: int | None) -> dict[str, Any]:
    return {
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers else None,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
    }


def _train_arguments(
    cfg: CfgNode, mapper: Mapper | None = None, *, dataset: Any = None, sampler: Sampler | None = None
) -> dict[str, Any]:
    node = cfg.DATALOADER
    records = dataset
    if records is None:
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, node.FILTER_EMPTY_ANNOTATIONS)
    if sampler is None and not isinstance(records, IterableDataset):
        if node.SAMPLER_TRAIN not in _TRAIN_SAMPLERS:
            expected = ", ".join(_TRAIN_SAMPLERS)
            raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {node.SAMPLER_TRAIN!r}: expected one of {expected}")
        logger.info("Using training sampler %s", node.SAMPLER_TRAIN)
        sampler = _TRAIN_SAMPLERS[node.SAMPLER_TRAIN](cfg, records)
    batches = {"total_batch_size": cfg.SOLVER.IMS_PER_BATCH, "aspect_ratio_grouping": node.ASPECT_RATIO_GROUPING}
    return {**_arguments(cfg, records, mapper, is_train=True), **batches, "sampler": sampler}


def _test_arguments(cfg: CfgNode, dataset_name: str | Sequence[str], mapper: Mapper | None = None) -> dict[str, Any]:
    return _arguments(cfg, get_detection_dataset_dicts(dataset_name, filter_empty=False), mapper, is_train=False)


def _arguments(cfg: CfgNode, records: Any, mapper: Mapper | None, is_train: bool) -> dict[str, Any]:
    mapper = mapper or DatasetMapper(cfg, is_train)
    return {"dataset": records, "mapper": mapper, "num_workers": cfg.DATALOADER.NUM_WORKERS}


@configurable(from_config=_train_arguments)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    **kwargs: Any,
) -> Any:
    """Return an endless iterable of training batches.

    Call it as ``(cfg)``, with keywords that override the config, or with explicit arguments.

    Args:
        dataset: a list of records, or a PyTorch dataset.
        mapper: makes the model's input of a record; None keeps records.
        sampler: None for a :class:`~detectron2.data.samplers.TrainingSampler`, which shuffles.
        total_batch_size: of all processes together.
        aspect_ratio_grouping, num_workers, collate_fn, **kwargs: see :func:`build_batch_data_loader`.

    Returns:
        an iterable of lists of mapped records, ``total_batch_size`` divided by the number of processes in each.

    Raises:
        ValueError: see :func:`build_batch_data_loader`.
    """
    kwargs |= {"aspect_ratio_grouping": aspect_ratio_grouping, "num_workers": num_workers, "collate_fn": collate_fn}
    mapped, order = _ordered(dataset, mapper, sampler, samplers.TrainingSampler)
    return build_batch_data_loader(mapped, order, total_batch_size, **kwargs)


@configurable(from_config=_test_arguments)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Mapper | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
) -> DataLoader:
    """Return a loader that reads each record once, in order.

    Call it as ``(cfg, dataset_name)`` or with explicit arguments.

    Args:
        dataset: a list of records, or a PyTorch dataset.
        mapper: makes the model's input of a record; None keeps records.
        sampler: None for an :class:`~detectron2.data.samplers.InferenceSampler`, which divides the records between the
            processes.
        batch_size: of this process.
        num_workers: worker processes; 0 loads in this one.
        collate_fn: makes a batch of a list of mapped records; None keeps the list.

    Raises:
        ValueError: a sampler is given for an iterable dataset.
    """
    mapped, order = _ordered(dataset, mapper, sampler, samplers.InferenceSampler)
    collate = collate_fn or trivial_batch_collator
    return DataLoader(mapped, batch_size, sampler=order, num_workers=num_workers, collate_fn=collate)
