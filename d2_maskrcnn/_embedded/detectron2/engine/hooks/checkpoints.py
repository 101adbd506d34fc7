"""Hooks that save checkpoints."""

import logging
import math
import operator
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as FvcorePeriodicCheckpointer

from detectron2.engine.train_loop import HookBase

logger = logging.getLogger(__name__)

_IS_BETTER = {"max": operator.gt, "min": operator.lt}


class PeriodicCheckpointer(FvcorePeriodicCheckpointer, HookBase):
    """Saves a checkpoint every ``period`` iterations and ``model_final`` after the last one."""

    def before_train(self) -> None:
        """Asks the trainer for the last iteration."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Saves if it is time."""
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves a checkpoint whenever a metric in the storage is better than ever before. It belongs behind the
    ``EvalHook``.

    Args:
        eval_period: iterations between two looks at the metric; 0 looks at the end only.
        checkpointer: what saves.
        val_metric: the metric's name in the storage, e.g. ``"segm/AP"``.
        mode: ``"max"`` if larger is better, ``"min"`` if smaller is.
        file_prefix: name of the file, without its extension.

    Raises:
        ValueError: ``mode`` is neither.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        if mode not in _IS_BETTER:
            raise ValueError(f"mode {mode!r}: expected 'max' or 'min'")
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._is_better = _IS_BETTER[mode]
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Looks at the metric if it is time; the end is left to :meth:`after_train`."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._look()

    def after_train(self) -> None:
        """Looks at the metric if the training came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._look()

    def _look(self) -> None:
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning("There is no metric %r to choose the best checkpoint by", self._val_metric)
            return
        value, iteration = float(latest[0]), int(latest[1])
        if iteration == self.best_iter or not math.isfinite(value):
            return
        if self.best_metric is not None and not self._is_better(value, self.best_metric):
            logger.info("%s %.5f is not better than %.5f", self._val_metric, value, self.best_metric)
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info("Best %s so far: %.5f after iteration %d", self._val_metric, value, iteration)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, so that a resumed training does not overwrite the best with less."""
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
