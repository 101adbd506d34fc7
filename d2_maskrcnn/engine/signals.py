"""Stop a training after the current iteration on Ctrl-C, SIGTERM or SIGHUP, in all of its processes at once."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from detectron2.utils import comm

logger = logging.getLogger(__name__)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that request a stop, without those that this process ignores, as SIGHUP under ``nohup``."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
    signals = [signal.Signals[name] for name in names]
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def stop_on_signals(trainer: Any) -> Iterator[None]:
    """Set ``trainer.stop_requested`` on a stop signal in the ``with`` block; a second Ctrl-C stops immediately."""

    def request(number: int, _frame: FrameType | None) -> None:
        if trainer.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        trainer.stop_requested = True
        logger.warning(
            "%s: finishing this iteration, then saving. Ctrl-C again stops immediately.", signal.Signals(number).name
        )

    try:
        old = {number: signal.signal(number, request) for number in stop_signals()}
    except ValueError:  # only the main thread can handle signals; a training in another thread does without
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def anyone_stopped(mine: bool) -> bool:
    """Return whether ``mine`` is True in any process, so that all stop at the same iteration; all must call it."""
    if comm.get_world_size() == 1:
        return mine
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    flag = torch.tensor([float(mine)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())
