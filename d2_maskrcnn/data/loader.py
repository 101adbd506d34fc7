"""A training loader that can be entered at any iteration: what it yields is a pure function of (seed, iteration).

So a training that was killed and resumed sees the very images, augmented in the very way, that it would have seen.
"""

import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from d2_maskrcnn.data.batches import BatchStream
from d2_maskrcnn.data.mapper import CatchUserErrors, Failure, MaskRCNNMapper, Record, raise_failures
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

Records = Dataset[Record] | Sequence[Record]

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


class ResumableTrainLoader:
    """An endless iterable of this process's part of the batches, each a list of the mapper's dicts.

    Nothing is read and no worker starts before the first ``next()``; every ``iter()`` begins at ``start_iter`` again.

    Args:
        records: the dataset, a sequence of standard dicts; kept serialised, shared with the workers.
        mapper: from a record to the model's input; may draw from Python's, NumPy's and PyTorch's global generators.
        groups: (N,) int; a batch holds images of one group only.
        batch_size: images in a batch of all processes together, a multiple of ``world_size``.
        seed: of shuffling and augmentation.
        repeats: (N,) float, how often each image comes in an epoch; None: once.
        num_workers: processes that read ahead; 0 reads in this one.
        rank, world_size: which slice of every batch is this process's.
    """

    def __init__(
        self,
        records: Records,
        mapper: Callable[[Record], Record],
        *,
        groups: np.ndarray,
        batch_size: int,
        seed: int,
        repeats: np.ndarray | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH is {batch_size}: expected a multiple of the number of processes, {world_size}"
            )
        self.records, self.mapper = records, mapper
        self.groups, self.repeats = groups, repeats
        self.batch_size, self.num_workers = batch_size, num_workers
        self.rank, self.world_size = rank, world_size
        self.seed, self.start_iter = seed, 0

    def set_start_iter(self, iteration: int) -> None:
        """The iteration (from 0) whose batch the next ``iter()`` begins with."""
        if iteration < 0:
            raise ValueError(f"start iteration {iteration}; expected 0 or more")
        self.start_iter = iteration

    def set_seed(self, seed: int) -> None:
        """The seed of the next ``iter()``."""
        self.seed = seed

    def __iter__(self) -> Iterator[list[Record]]:
        # A generator function: its body runs at the first next(), after set_start_iter and set_seed.
        loader = DataLoader(
            _SeededSamples(self.records, self.mapper, self.seed),
            batch_sampler=_PositionedBatches(self),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # the default one belongs to the model, and DataLoader draws from it
        )
        yield from map(raise_failures, loader)

    def slices(self) -> Iterator[list[tuple[int, int]]]:
        """Yields this process's slice of every batch from ``start_iter`` on: (position in the stream, index) pairs."""
        stream = BatchStream(self.groups, self.batch_size, self.seed, self.repeats)
        share = self.batch_size // self.world_size
        own = slice(self.rank * share, (self.rank + 1) * share)
        for iteration, batch in enumerate(stream.batches_from(self.start_iter), start=self.start_iter):
            positions = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
            yield list(zip(positions[own], batch[own].tolist(), strict=True))


class _PositionedBatches:
    """The loader's slices, in the form in which DataLoader takes them."""

    def __init__(self, loader: ResumableTrainLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.loader.slices()


class _SeededSamples(Dataset):
    """Samples whose randomness depends on (seed, position in the stream) alone, whichever process makes them."""

    def __init__(self, records: Records, mapper: Callable[[Record], Record], seed: int) -> None:
        self.records, self.mapper, self.seed = records, CatchUserErrors(mapper), seed

    def __getitem__(self, where: tuple[int, int]) -> Record | Failure:
        position, index = where
        with seeded_randomness(self.seed, position):
            return self.mapper(self.records[index])


@contextlib.contextmanager
def seeded_randomness(seed: int, position: int) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and PyTorch (CPU), and puts their states back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    words = np.random.SeedSequence((seed, position)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # torch.manual_seed would reseed the GPUs' generators as well, which belong to the model
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches workers too, but the main process must still get the batch of the iteration it finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def build_resumable_train_loader(
    cfg: CfgNode,
    seed: int,
    mapper: Callable[[Record], Record] | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
) -> ResumableTrainLoader:
    """Builds the loader of ``DATASETS.TRAIN`` from ``DATALOADER`` and ``SOLVER.IMS_PER_BATCH``.

    Args:
        cfg: with its datasets registered.
        seed: of shuffling and augmentation, the same in all processes.
        mapper: by default ``MaskRCNNMapper(cfg, is_train=True)``.
        rank, world_size: by default this process's in the running job.

    Raises:
        UserError: no image to train on, a sampler that is not known, or a batch that the processes cannot share.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler not in SAMPLERS:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, check_consistency=True
    )
    if not records:
        raise UserError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: no image has an object to train on")
    return ResumableTrainLoader(
        DatasetFromList(records, copy=False, serialize=True),
        mapper or MaskRCNNMapper(cfg, is_train=True),
        groups=_aspect_groups(records, cfg.DATALOADER.ASPECT_RATIO_GROUPING),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        repeats=_repeats(cfg, records) if sampler == "RepeatFactorTrainingSampler" else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
    )


def _aspect_groups(records: list[Record], grouping: bool) -> np.ndarray:
    """(N,) 1 for images wider than high, 0 for others; all 0 where they are not to be grouped."""
    if not grouping:
        return np.zeros(len(records), dtype=np.int64)
    return np.array([record["width"] > record["height"] for record in records], dtype=np.int64)


def _repeats(cfg: CfgNode, records: list[Record]) -> np.ndarray:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return factors.numpy().astype(np.float64)
