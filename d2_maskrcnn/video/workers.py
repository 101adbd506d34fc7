"""Run the model in this process or in several: one per GPU, or a few on the CPU."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.structures.detections import Detections
from detectron2.config import CfgNode

_settings: tuple[CfgNode, dict[str, Any]] | None = None  # config and options, in a worker process


class InProcess:
    """Run the model in this process."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.class_names, self.category_ids = predictor.class_names, predictor.category_ids

    def submit(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> "Future[list[Detections]]":
        """Run the model on a batch; the returned future is already done. See :meth:`Predictor.predict`."""
        done: Future[list[Detections]] = Future()
        try:
            done.set_result(self._predictor.predict(inputs, sizes))
        except Exception as error:  # belongs to the caller of result(), as with a pool
            done.set_exception(error)
        return done

    def close(self) -> None:
        """Do nothing: there are no processes to end."""


class WorkerPool:
    """Run copies of the model in processes of their own.

    Args:
        cfg: config of the model. options: keyword arguments of :class:`Predictor`.
        count: number of processes.

    Raises:
        UserError: see :class:`Predictor`; or a process died while starting.
    """

    def __init__(self, cfg: CfgNode, options: Mapping[str, Any], count: int) -> None:
        context = multiprocessing.get_context("spawn")
        devices: Any = context.Queue()
        for number in range(count):
            devices.put(_device(str(cfg.MODEL.DEVICE), number))
        threads = max(1, (os.cpu_count() or 1) // count)
        self._pool = ProcessPoolExecutor(count, context, _start, (cfg.dump(), dict(options), devices, threads))
        try:
            with _interrupts_blocked():
                classes = self._pool.submit(_classes)
            self.class_names, self.category_ids = classes.result()
        except BrokenProcessPool as error:
            raise UserError("A model process died while it started; see its message above.") from error

    def submit(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> "Future[list[Detections]]":
        """Send a batch to a free process. See :meth:`Predictor.predict`."""
        with _interrupts_blocked():
            return self._pool.submit(_predict, list(inputs), list(sizes))

    def close(self) -> None:
        """Terminate the processes; batches that haven't started are canceled."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes that are started in the block be born with Ctrl-C blocked, which reaches all processes."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_count() -> int:
    """Return the number of model processes: one per GPU, two without a GPU."""
    return torch.cuda.device_count() or 2


def _device(name: str, number: int) -> str:
    """Distribute processes over the GPUs, unless the config names one of them."""
    if name == "cuda" and torch.cuda.device_count():
        return f"cuda:{number % torch.cuda.device_count()}"
    return name


def _start(config: str, options: dict[str, Any], devices: Any, threads: int) -> None:
    """Store the settings only: an exception in an initializer ends the process without telling the caller why."""
    global _settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends these
    torch.set_num_threads(threads)
    cfg = CfgNode.load_cfg(config)
    cfg.MODEL.DEVICE = devices.get()
    _settings = (cfg, options)


@lru_cache(maxsize=1)
def _predictor() -> Predictor:
    assert _settings is not None
    cfg, options = _settings
    return Predictor(cfg, **options)


def _classes() -> tuple[list[str], list[int]]:
    return _predictor().class_names, _predictor().category_ids


def _predict(inputs: list[np.ndarray], sizes: list[tuple[int, int]]) -> list[Detections]:
    return _predictor().predict(inputs, sizes)
