"""Hooks that time the training and write its numbers."""

import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from detectron2.engine.train_loop import HookBase, TrainerBase
from detectron2.utils.events import EventWriter

logger = logging.getLogger(__name__)

Callback = Callable[[TrainerBase], None]


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_step: Callback | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, moment: str) -> None:
        callback = self._callbacks[moment]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        """Calls the function for this moment."""
        self._call("before_train")

    def after_train(self) -> None:
        """Calls the function for this moment, then drops all: they may hold the trainer and so keep it alive."""
        self._call("after_train")
        self._callbacks = dict.fromkeys(self._callbacks)

    def before_step(self) -> None:
        """Calls the function for this moment."""
        self._call("before_step")

    def after_step(self) -> None:
        """Calls the function for this moment."""
        self._call("after_step")


class IterationTimer(HookBase):
    """Puts the seconds of each iteration into the storage as ``time`` and logs a summary at the end.

    It should be the first hook, so that it times the others' ``before_step`` too; what the hooks behind it do after a
    step counts as time on hooks.

    Args:
        warmup_iter: iterations at the start that are left out of the speed: they are slower than the rest.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._train_start = self._timed_from = self._step_start = time.perf_counter()
        self._seconds_in_steps = 0.0

    def before_train(self) -> None:
        """Starts the clock."""
        self._train_start = self._timed_from = time.perf_counter()
        self._seconds_in_steps = 0.0

    def before_step(self) -> None:
        """Starts the iteration's clock."""
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        """Puts the iteration's time into the storage, or forgets it during the warm-up."""
        now = time.perf_counter()
        finished = self.trainer.iter - self.trainer.start_iter + 1
        if finished <= self._warmup_iter:
            self._timed_from = now
        else:
            self._seconds_in_steps += now - self._step_start
            self.trainer.storage.put_scalars(time=now - self._step_start)

    def after_train(self) -> None:
        """Logs the speed, the whole time, and the part of it that the other hooks took."""
        total = time.perf_counter() - self._train_start
        timed = time.perf_counter() - self._timed_from
        # An error leaves `iter` at the iteration that failed: that one is not finished.
        iterations = self.trainer.iter - self.trainer.start_iter - self._warmup_iter
        if iterations > 0 and self._seconds_in_steps > 0:
            logger.info(
                "Speed: %d iterations in %s (%.4f s/iteration)",
                iterations,
                _whole_seconds(self._seconds_in_steps),
                self._seconds_in_steps / iterations,
            )
            logger.info(
                "Total training time: %s (%s of it on hooks)",
                _whole_seconds(total),
                _whole_seconds(timed - self._seconds_in_steps),
            )
        else:
            logger.info("Total training time: %s", _whole_seconds(total))


def _whole_seconds(seconds: float) -> timedelta:
    return timedelta(seconds=int(seconds))


class PeriodicWriter(HookBase):
    """Lets writers write every ``period`` iterations and at the end, when it also closes them.

    It should be the last hook, so that what the others put into the storage is written too.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int = 20) -> None:
        for writer in writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"a writer must be an EventWriter, got {writer!r}")
        self._writers = writers
        self._period = period

    def after_step(self) -> None:
        """Writes if this iteration is one to be written."""
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()

    def after_train(self) -> None:
        """Writes what other hooks put into the storage at the end, and closes the writers."""
        self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()
