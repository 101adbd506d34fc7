"""Load training batches as a pure function of (seed, iteration).

A resumed training gets the same images with the same augmentations as an uninterrupted one, and a training gets the
same global batches with any number of processes.
"""

import contextlib
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from d2_maskrcnn.data.augmentation import add_copy_paste, build_train_mapper
from d2_maskrcnn.data.mapper import CatchUserErrors, Failure, Record, raise_failures
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm

Records = Dataset[Record] | Sequence[Record]

SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
# Small datasets are shuffled several epochs at a time, so that entering the stream late is fast for them as well.
SHUFFLED_TOGETHER = 8192


class BatchStream:
    """Endless stream of global batches of image indices, a pure function of the seed.

    Detectron2 shards a shuffled stream over the processes and groups each shard into batches. Here the stream is
    grouped first and each process takes its slice of every batch, so the batches don't depend on the number of
    processes.

    Args:
        groups: (N,) int; a batch contains images of one group only (landscape or portrait, for instance).
        batch_size: images per global batch.
        seed: seed of the shuffling.
        repeats: (N,) float, how often an image occurs per epoch on average (Gupta, Dollár and Girshick 2019, LVIS,
            section 4.2 and appendix B); the fraction is rounded up or down at random in each epoch. None: once.

    Raises:
        ValueError: N is 0.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int, repeats: np.ndarray | None = None) -> None:
        if len(groups) == 0:
            raise ValueError("a stream of batches needs at least 1 image, got 0")
        self.groups = np.asarray(groups, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.epochs_per_block = max(1, SHUFFLED_TOGETHER // len(self.groups))

    def batches_from(self, start: int) -> Iterator[np.ndarray]:
        """Yield batch ``start`` and all later ones, each (batch_size,) int64 image indices.

        Earlier batches are computed and skipped a block of epochs at a time: 270,000 of them take 1 to 2 seconds.
        """
        waiting = {group: np.empty(0, dtype=np.int64) for group in np.unique(self.groups).tolist()}
        first = block = 0
        while True:
            batches, waiting = self._fill(self._shuffled_block(block), waiting)
            yield from batches[max(0, start - first) :]
            first += len(batches)
            block += 1

    def _shuffled_block(self, block: int) -> np.ndarray:
        """Return the indices of ``epochs_per_block`` epochs, each shuffled on its own: (M,) int64."""
        rng = np.random.Generator(np.random.PCG64([self.seed, block]))
        count, epochs = len(self.groups), self.epochs_per_block
        index, epoch = np.tile(np.arange(count), epochs), np.repeat(np.arange(epochs), count)
        if self.repeats is not None:
            whole = np.floor(self.repeats)
            extra = rng.random((epochs, count)) < self.repeats - whole
            times = (whole + extra).astype(np.int64).ravel()
            index, epoch = np.repeat(index, times), np.repeat(epoch, times)
        return index[np.lexsort((rng.random(len(index)), epoch))]

    def _fill(self, stream: np.ndarray, waiting: dict[int, np.ndarray]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Fill batches from ``waiting`` and then ``stream`` (M,), ordered by when their last image arrives.

        Returns:
            The batches (B, batch_size), and for each group the indices left over for the next block.
        """
        groups = self.groups[stream]
        batches, completed, left = [], [], {}
        for group, before in waiting.items():
            positions = np.flatnonzero(groups == group)
            queue = np.concatenate([before, stream[positions]])
            count = len(queue) // self.batch_size
            batches.append(queue[: count * self.batch_size].reshape(count, self.batch_size))
            last = np.arange(1, count + 1) * self.batch_size - 1 - len(before)  # of each batch, as index in positions
            completed.append(positions[last])
            left[group] = queue[count * self.batch_size :]
        return np.concatenate(batches)[np.argsort(np.concatenate(completed), kind="stable")], left


class ResumableTrainLoader:
    """Endless iterable of this process's slices of the global batches, each a list of mapped records.

    Nothing is read and no worker starts before the first ``next()``. Each ``iter()`` begins at ``start_iter``.

    Args:
        records: the dataset as standard dataset dicts.
        mapper: maps a record to a model input; may use the global generators of Python, NumPy and PyTorch.
        groups: (N,) int; a batch contains images of one group only.
        batch_size: images per global batch, a multiple of ``world_size``.
        seed: seed of shuffling and augmentation.
        repeats: (N,) float, how often each image occurs per epoch on average; None: once.
        num_workers: worker processes; 0 loads in this process.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        UserError: ``batch_size`` is not a multiple of ``world_size``.
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
        """Set the iteration, counted from 0, at which the next ``iter()`` begins."""
        if iteration < 0:
            raise ValueError(f"start iteration {iteration}; expected 0 or more")
        self.start_iter = iteration

    def set_seed(self, seed: int) -> None:
        """Set the seed of the next ``iter()``."""
        self.seed = seed

    def __iter__(self) -> Iterator[list[Record]]:
        # A generator function: its body runs at the first next(), after set_start_iter and set_seed.
        loader = DataLoader(
            _SeededSamples(self.records, self.mapper, self.seed),
            batch_sampler=self.index_batches(),
            num_workers=self.num_workers,
            collate_fn=_as_list,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # DataLoader advances its generator; the default one belongs to the model
        )
        yield from map(raise_failures, loader)

    def index_batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's slice of each batch from ``start_iter`` on as (position in the stream, index) pairs."""
        stream = BatchStream(self.groups, self.batch_size, self.seed, self.repeats)
        share = self.batch_size // self.world_size
        own = slice(self.rank * share, (self.rank + 1) * share)
        for iteration, batch in enumerate(stream.batches_from(self.start_iter), start=self.start_iter):
            positions = range(iteration * self.batch_size, (iteration + 1) * self.batch_size)
            yield list(zip(positions[own], batch[own].tolist(), strict=True))


class _SeededSamples(Dataset):
    """Map records with randomness that depends on (seed, position in the stream) only, not on the worker."""

    def __init__(self, records: Records, mapper: Callable[[Record], Record], seed: int) -> None:
        self.records, self.mapper, self.seed = records, CatchUserErrors(mapper), seed

    def __getitem__(self, where: tuple[int, int]) -> Record | Failure:
        position, index = where
        with seeded_randomness(self.seed, position):
            return self.mapper(self.records[index])


@contextlib.contextmanager
def seeded_randomness(seed: int, position: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch (CPU) inside the context; restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    words = np.random.SeedSequence((seed, position)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    # not torch.manual_seed, which would reseed the GPU generators as well; those belong to the model
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def _outlive_signals(_worker: int) -> None:
    """Let workers outlive Ctrl-C and a first SIGTERM: the main process needs them for the iteration that it finishes.

    Terminals, and many batch systems, send these signals to all processes of a program.
    """

    def end_at_the_next(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_at_the_next)


def build_resumable_train_loader(
    cfg: CfgNode,
    seed: int,
    mapper: Callable[[Record], Record] | None = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
) -> ResumableTrainLoader:
    """Build the training loader from ``DATASETS.TRAIN``, ``DATALOADER``, ``SOLVER.IMS_PER_BATCH`` and ``INPUT``.

    Args:
        cfg: a config whose datasets are registered.
        seed: seed of shuffling and augmentation, the same in all processes.
        mapper: default: :func:`~d2_maskrcnn.data.augmentation.build_train_mapper`, with copy-paste if enabled.
        rank: rank of this process; default: that in the running job.
        world_size: number of processes; default: that of the running job.

    Raises:
        UserError: there is no image to train on, an unknown sampler, a batch size that the processes cannot share, or
            a bad value of an augmentation.
    """
    sampler = cfg.DATALOADER.SAMPLER_TRAIN
    if sampler not in SAMPLERS:
        raise UserError(f"DATALOADER.SAMPLER_TRAIN is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
    listed = _train_records(cfg)
    records = DatasetFromList(listed, copy=False, serialize=True)  # one buffer, shared with the workers
    return ResumableTrainLoader(
        records,
        mapper or add_copy_paste(cfg, build_train_mapper(cfg), records),
        groups=_aspect_groups(listed, cfg.DATALOADER.ASPECT_RATIO_GROUPING),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        repeats=_repeats(cfg, listed) if sampler == "RepeatFactorTrainingSampler" else None,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank() if rank is None else rank,
        world_size=comm.get_world_size() if world_size is None else world_size,
    )


def _train_records(cfg: CfgNode) -> list[Record]:
    """Load ``DATASETS.TRAIN`` and check what datasets that are registered in Python can lack.

    Raises:
        UserError: there is no image to train on, a record without ``annotations``, or a class that the model lacks.
    """
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, check_consistency=True
    )
    if not records:
        raise UserError(f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}: no image has an object to train on")
    classes = range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    for record in records:
        if "annotations" not in record:
            raise UserError(f"DATASETS.TRAIN: the record of {record.get('file_name')} has no 'annotations'")
        for annotation in record["annotations"]:
            if annotation.get("category_id") not in classes:
                raise UserError(
                    f"DATASETS.TRAIN: an annotation of {record.get('file_name')} has category_id "
                    f"{annotation.get('category_id')!r}; expected 0 to {classes[-1]} (MODEL.ROI_HEADS.NUM_CLASSES - 1)"
                )
    return records


def _aspect_groups(records: list[Record], grouping: bool) -> np.ndarray:
    """Return (N,) int64: 1 for images wider than high, else 0; all 0 without ``grouping``."""
    if not grouping:
        return np.zeros(len(records), dtype=np.int64)
    return np.array([record["width"] > record["height"] for record in records], dtype=np.int64)


def _repeats(cfg: CfgNode, records: list[Record]) -> np.ndarray:
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
    return factors.numpy().astype(np.float64)
