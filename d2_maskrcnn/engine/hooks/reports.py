"""Hooks that only report: their failures are warnings and never end a training."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from d2_maskrcnn import compat
from d2_maskrcnn.engine.hooks.evaluation import evaluation_is_due
from d2_maskrcnn.errors import one_line
from d2_maskrcnn.evaluation.prediction_images import draw_test_sets
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter

logger = logging.getLogger(__name__)


def _tolerated(name: str) -> Callable[[Any], None]:
    def call(self: Any) -> None:
        self.hook.trainer = self.trainer
        with self.guard.tolerate():
            getattr(self.hook, name)()

    return call


class Tolerant(HookBase):
    """Run a hook whose failures must not end the training; the first one is logged as a warning."""

    before_train, after_train = _tolerated("before_train"), _tolerated("after_train")
    before_step, after_step = _tolerated("before_step"), _tolerated("after_step")

    def __init__(self, hook: HookBase) -> None:
        self.hook, self.guard = hook, FailureGuard(type(hook).__name__)


class FailureGuard:
    """Turn exceptions into one warning per name; repetitions are logged at debug level."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    @contextlib.contextmanager
    def tolerate(self) -> Iterator[None]:
        """Log an exception of the ``with`` block instead of raising it."""
        try:
            yield
        except Exception as error:  # whatever a drawing or logging library raises, the training is worth more
            level = logging.DEBUG if self.failed else logging.WARNING
            message = "%s failed, the training continues without it (%s: %s)"
            logger.log(level, message, self.name, type(error).__name__, one_line(error))
            logger.debug("%s failed", self.name, exc_info=True)
            self.failed = True


class WriteEvents(HookBase):
    """Let the writers write every ``period`` iterations, after each evaluation, and at the end. Register it last.

    Numbers that were logged after the last iteration, or that were not written yet when the training stopped, are
    written under the last iteration that was finished.
    """

    trainer: Any

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        self.writers, self.period = writers, period
        self._guards = [FailureGuard(type(writer).__name__) for writer in writers]
        self._written = -1  # latest iteration that was written

    def after_step(self) -> None:
        """Write if it is time."""
        trainer = self.trainer
        is_periodic = (trainer.iter + 1) % self.period == 0 or trainer.iter == trainer.max_iter - 1
        if is_periodic or (trainer.cfg.DATASETS.TEST and evaluation_is_due(trainer)):
            self._write()

    def after_train(self) -> None:
        """Write the rest and close the writers."""
        storage = self.trainer.storage
        if compat.pending_images(storage) or any(it > self._written for _, it in storage.latest().values()):
            self._write()
        for writer, guard in zip(self.writers, self._guards, strict=True):
            with guard.tolerate():
                writer.close()

    def _write(self) -> None:
        storage = self.trainer.storage
        for writer, guard in zip(self.writers, self._guards, strict=True):
            with guard.tolerate():
                writer.write()
        # A writer clears them unless it failed or is not there.
        storage.clear_images()
        storage.clear_histograms()
        self._written = max((iteration for _, iteration in storage.latest().values()), default=self._written)


class DrawPredictions(HookBase):
    """Draw the predictions of the final model on the test sets."""

    def after_train(self) -> None:
        """Draw if the training reached its last iteration."""
        trainer: Any = self.trainer
        if trainer.iter >= trainer.max_iter:
            draw_test_sets(trainer.cfg, trainer.model)
