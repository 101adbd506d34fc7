"""Hooks that time the training, write its numbers, and call functions."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.events import EventWriter

logger = logging.getLogger(__name__)

Callback = Callable[[TrainerBase], None]


class CallbackHook(HookBase):
    """Call functions with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        self._callbacks: dict[str, Callback | None] = {"before_train": before_train, "after_train": after_train}
        self._callbacks |= {"before_step": before_step, "after_step": after_step}

    def _call(self, moment: str) -> None:
        callback = self._callbacks.get(moment)
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        """Call the function of this moment."""
        self._call("before_train")

    def after_train(self) -> None:
        """Call the function of this moment, then drop all of them: they may refer to the trainer."""
        self._call("after_train")
        self._callbacks = {}

    def before_step(self) -> None:
        """Call the function of this moment."""
        self._call("before_step")

    def after_step(self) -> None:
        """Call the function of this moment."""
        self._call("after_step")


class IterationTimer(HookBase):
    """Write the seconds of each iteration to the event storage as ``time``, and log a summary at the end.

    Register it first: then an iteration's time includes the other hooks' ``before_step``, and what they do after a step
    counts as time of hooks.

    Args:
        warmup_iter: the first iteration, counted from 1, whose time is written: those before are slower.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._train_start = self._timed_from = self._step_start = time.perf_counter()
        self._seconds_in_steps, self._timed = 0.0, 0

    def before_train(self) -> None:
        """Start the clock."""
        self._train_start = self._timed_from = time.perf_counter()
        self._seconds_in_steps, self._timed = 0.0, 0

    def before_step(self) -> None:
        """Start the clock of the iteration."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Write the time of the iteration, unless it belongs to the warm-up."""
        now = time.perf_counter()
        if self.trainer.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            self._timed_from = now
            return
        self._timed += 1
        self._seconds_in_steps += now - self._step_start
        self.trainer.storage.put_scalars(time=now - self._step_start)

    def after_train(self) -> None:
        """Log the speed, the total time, and how much of it the other hooks took."""
        now = time.perf_counter()
        if self._timed:
            stepping, each = _whole_seconds(self._seconds_in_steps), self._seconds_in_steps / self._timed
            logger.info("Overall training speed: %d iterations in %s (%.4f s / it)", self._timed, stepping, each)
        on_hooks = _whole_seconds(now - self._timed_from - self._seconds_in_steps)
        logger.info("Total training time: %s (%s on hooks)", _whole_seconds(now - self._train_start), on_hooks)


def _whole_seconds(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))


class PeriodicWriter(HookBase):
    """Write the event storage every ``period`` iterations and at the end, and close the writers.

    Register it last, so that it writes what the other hooks put into the storage.

    Raises:
        TypeError: a writer is not an ``EventWriter``.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"a writer must be an EventWriter, got {writer!r}")
        self._writers, self._period = writers, period

    def after_step(self) -> None:
        """Write if it is due."""
        finished = self.trainer.iter + 1
        if finished % self._period == 0 or finished == self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        """Write what the hooks put into the storage at the end, and close the writers."""
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()
