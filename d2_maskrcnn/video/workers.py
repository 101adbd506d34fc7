"""Several copies of the model, each in a process of its own: one for each GPU, or a few on the CPU."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
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

_wanted: tuple[CfgNode, str] | None = None  # config and precision, in a worker process


class InProcess:
    """The model in this process."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.class_names = predictor.class_names

    def submit(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> "Future[list[Detections]]":
        """Runs the model; the result is there when this returns."""
        done: Future[list[Detections]] = Future()
        done.set_result(self._predictor.predict(inputs, sizes))
        return done

    def close(self) -> None:
        """Nothing to end."""


class WorkerPool:
    """Models in other processes.

    Args:
        cfg, precision: see :class:`Predictor`. count: of processes.

    Raises:
        UserError: see :class:`Predictor`; or a process dies.
    """

    def __init__(self, cfg: CfgNode, precision: str, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        devices: Any = context.Queue()
        for number in range(count):
            devices.put(_device(str(cfg.MODEL.DEVICE), number))
        threads = max(1, (os.cpu_count() or 1) // count)
        self._pool = ProcessPoolExecutor(count, context, _start, (cfg.dump(), precision, devices, threads))
        self.class_names: list[str] = self._wait(self._pool.submit(_class_names))

    def submit(self, inputs: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> "Future[list[Detections]]":
        """Sends a batch to whichever process is free."""
        return self._pool.submit(_predict, list(inputs), list(sizes))

    def close(self) -> None:
        """Ends the processes; what they have not begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _wait(future: "Future[Any]") -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise UserError("--parallel: a model process died while it started; see its message above.") from error


def default_count() -> int:
    """One process for each GPU; two where there is none."""
    return torch.cuda.device_count() or 2


def _device(name: str, number: int) -> str:
    """Processes are spread over the GPUs, unless one is named."""
    if name == "cuda" and torch.cuda.device_count():
        return f"cuda:{number % torch.cuda.device_count()}"
    return name


def _start(config: str, precision: str, devices: Any, threads: int) -> None:
    """Only notes what is wanted: an error here would end the process without telling the caller why."""
    global _wanted
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the first one sees to the ending
    torch.set_num_threads(threads)
    cfg = CfgNode.load_cfg(config)
    cfg.MODEL.DEVICE = devices.get()
    _wanted = (cfg, precision)


@lru_cache(maxsize=1)
def _predictor() -> Predictor:
    assert _wanted is not None
    return Predictor(*_wanted)


def _class_names() -> list[str]:
    return _predictor().class_names


def _predict(inputs: list[np.ndarray], sizes: list[tuple[int, int]]) -> list[Detections]:
    return _predictor().predict(inputs, sizes)
