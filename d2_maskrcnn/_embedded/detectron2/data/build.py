"""Loaders for training and inference."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from detectron2.config import CfgNode, configurable
from detectron2.data._dataset_dicts import (
    filter_images_with_only_crowd_annotations,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.common import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.dataset_mapper import DatasetMapper
from detectron2.data.samplers import (
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils.comm import get_world_size
from detectron2.utils.env import seed_all_rng

__all__ = [
    "build_batch_data_loader",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "filter_images_with_only_crowd_annotations",
    "get_detection_dataset_dicts",
    "print_instances_class_histogram",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]

logger = logging.getLogger(__name__)


def trivial_batch_collator(batch: list[Any]) -> list[Any]:
    """A batch is the list of its elements."""
    return batch


def worker_init_reset_seed(worker_id: int) -> None:
    """Seeds Python's, NumPy's and PyTorch's generators in a worker, differently in each."""
    seed_all_rng(torch.initial_seed() % 2**31 + worker_id)


def _batch_size_of_process(total_batch_size: int) -> int:
    world_size = get_world_size()
    if total_batch_size <= 0 or total_batch_size % world_size != 0:
        raise ValueError(
            f"the total batch size (SOLVER.IMS_PER_BATCH) must be a positive multiple of the number of processes, "
            f"{world_size}, got {total_batch_size}."
        )
    return total_batch_size // world_size


def build_batch_data_loader(
    dataset: Any,
    sampler: Sampler | None,
    total_batch_size: int,
    *,
    aspect_ratio_grouping: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = True,
    single_gpu_batch_size: int | None = None,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = False,
    pin_memory: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """An iterable of batches for training. For a given sampler, the order does not depend on the number of workers.

    Args:
        dataset: with indices, or iterable.
        sampler: gives indices; None for an iterable dataset.
        total_batch_size: of all processes together.
        aspect_ratio_grouping: put wide images with wide ones; elements must be dicts with ``width`` and ``height``.
        num_workers: worker processes; 0 loads in this one.
        collate_fn: from a list of elements to a batch; None leaves the list.
        drop_last: leave out a last batch that is not full.
        single_gpu_batch_size: of this process; then ``total_batch_size`` is ignored.
        prefetch_factor: batches that each worker loads ahead.
        persistent_workers: keep workers between iterations over the loader.
        pin_memory: of torch's ``DataLoader``.
        seed: of the workers' random generators; None draws it from PyTorch's global generator.
        **kwargs: further arguments of torch's ``DataLoader``.

    Raises:
        ValueError: the batch size does not divide by the number of processes, or an iterable dataset comes with a
            sampler.
    """
    batch_size = single_gpu_batch_size or _batch_size_of_process(total_batch_size)
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("a sampler makes no sense with an iterable dataset: pass sampler=None.")
    elif sampler is None:
        raise ValueError("a dataset with indices needs a sampler, got None.")
    else:
        # Chunks as large as what a worker hands over at a time: the loader then joins them in the sampler's order.
        chunk = 1 if aspect_ratio_grouping else batch_size
        dataset = ToIterableDataset(dataset, sampler, shard_chunk_size=chunk)
    options: dict[str, Any] = {
        "num_workers": num_workers,
        "worker_init_fn": worker_init_reset_seed,
        "prefetch_factor": prefetch_factor if num_workers > 0 else None,
        "persistent_workers": persistent_workers,
        "pin_memory": pin_memory,
        "generator": None if seed is None else torch.Generator().manual_seed(seed),
        **kwargs,
    }
    if not aspect_ratio_grouping:
        collate_fn = collate_fn or trivial_batch_collator
        return DataLoader(dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn, **options)
    elements = DataLoader(dataset, batch_size=1, collate_fn=operator.itemgetter(0), **options)
    batches = AspectRatioGroupedDataset(elements, batch_size)
    return batches if collate_fn is None else MapDataset(batches, collate_fn)


def _build_sampler(cfg: CfgNode, dataset: Any) -> Sampler:
    """The sampler that ``DATALOADER.SAMPLER_TRAIN`` names."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("Training sampler: %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset))
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors)
    if name == "RandomSubsetTrainingSampler":
        return RandomSubsetTrainingSampler(len(dataset), cfg.DATALOADER.RANDOM_SUBSET_RATIO)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; expected 'TrainingSampler', 'RepeatFactorTrainingSampler' or "
        "'RandomSubsetTrainingSampler'."
    )


def _train_loader_from_config(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], Any] | None = None,
    *,
    dataset: Any = None,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    if dataset is None:
        dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = _build_sampler(cfg, dataset)
    return {
        "dataset": dataset,
        "sampler": sampler,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **kwargs: Any,
) -> Any:
    """An endless iterable of training batches.

    Call it as ``(cfg)``, with keywords to override, or with explicit arguments.

    Args:
        dataset: a list of records, or a torch dataset.
        mapper: from a record to the model's input; None leaves records as they are.
        sampler: None means a shuffling :class:`TrainingSampler`.
        total_batch_size: of all processes together.
        aspect_ratio_grouping: put wide images with wide ones.
        num_workers: worker processes; 0 loads in this one.
        collate_fn: from a list of mapped records to a batch; None leaves the list.
        **kwargs: further arguments of :func:`build_batch_data_loader`.

    Returns:
        an iterable of lists of mapped records, ``total_batch_size`` divided by the number of processes in each.

    Raises:
        ValueError: the batch size does not divide by the number of processes, or an iterable dataset comes with a
            sampler.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if sampler is None and not isinstance(dataset, IterableDataset):
        sampler = TrainingSampler(len(dataset))
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    return build_batch_data_loader(
        dataset,
        sampler,
        total_batch_size,
        aspect_ratio_grouping=aspect_ratio_grouping,
        num_workers=num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _test_loader_from_config(
    cfg: CfgNode,
    dataset_name: str | Sequence[str],
    mapper: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    dataset = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "sampler": None if isinstance(dataset, IterableDataset) else InferenceSampler(len(dataset)),
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: Any,
    *,
    mapper: Callable[[dict[str, Any]], Any] | None,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> DataLoader:
    """A loader that gives each record once, in order.

    Call it as ``(cfg, dataset_name)`` or with explicit arguments.

    Args:
        dataset: a list of records, or a torch dataset.
        mapper: from a record to the model's input; None leaves records as they are.
        sampler: None means an :class:`InferenceSampler`, which divides the records between the processes.
        batch_size: of this process.
        num_workers: worker processes; 0 loads in this one.
        collate_fn: from a list of mapped records to a batch; None leaves the list.

    Raises:
        ValueError: an iterable dataset comes with a sampler.
    """
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)
    if mapper is not None:
        dataset = MapDataset(dataset, mapper)
    if isinstance(dataset, IterableDataset):
        if sampler is not None:
            raise ValueError("a sampler makes no sense with an iterable dataset: pass sampler=None.")
    elif sampler is None:
        sampler = InferenceSampler(len(dataset))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=False,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
    )
