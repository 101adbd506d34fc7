"""Hooks that evaluate and that save checkpoints."""

import logging
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as FvcorePeriodicCheckpointer

from detectron2.engine.train_loop import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_IS_BETTER = {"max": operator.gt, "min": operator.lt}


class _EveryPeriodAndAtTheEnd(HookBase):
    """Call :meth:`act` every ``period`` iterations and when the training is complete, never twice at the end."""

    _period: int

    def act(self) -> None:
        """Do what is due."""

    def after_step(self) -> None:
        """Act if the number of finished iterations is a multiple of the period."""
        finished = self.trainer.iter + 1
        if self._period > 0 and finished % self._period == 0 and finished < self.trainer.max_iter:
            self.act()

    def after_train(self) -> None:
        """Act unless an error ended the training."""
        if self.trainer.iter >= self.trainer.max_iter:
            self.act()


class EvalHook(_EveryPeriodAndAtTheEnd):
    """Evaluate periodically and at the end, and write the results to the event storage.

    Args:
        eval_period: iterations between two evaluations; 0 evaluates at the end only.
        eval_function: returns a nested dict of numbers, or None. Every process calls it.
        eval_after_train: whether the end counts too.
    """

    def __init__(
        self, eval_period: int, eval_function: Callable[[], Mapping[str, Any] | None], eval_after_train: bool = True
    ) -> None:
        self._period, self._eval_after_train = eval_period, eval_after_train
        self._function: Callable[[], Mapping[str, Any] | None] | None = eval_function

    def act(self) -> None:
        """Evaluate now."""
        assert self._function is not None
        results = self._function() or {}
        if not isinstance(results, Mapping):
            raise TypeError(f"the evaluation must return a dict of numbers, got {results!r}")
        for name, value in flatten_results_dict(results).items():
            self.trainer.storage.put_scalar(name, _number(name, value), smoothing_hint=False)
        # Processes that take no part in the evaluation wait here; in the next iteration they would run into a timeout.
        comm.synchronize()

    def after_train(self) -> None:
        """Evaluate if the training is complete, then drop the function, which may refer to the trainer."""
        if self._eval_after_train:
            super().after_train()
        self._function = None


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the evaluation must return numbers, got {value!r} for {name!r}") from error


class PeriodicCheckpointer(FvcorePeriodicCheckpointer, HookBase):
    """Save a checkpoint every ``period`` iterations, and ``model_final`` after the last one."""

    def before_train(self) -> None:
        """Take the last iteration from the trainer."""
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        """Save if a checkpoint is due."""
        self.step(self.trainer.iter)


class BestCheckpointer(_EveryPeriodAndAtTheEnd):
    """Save a checkpoint when a metric in the event storage exceeds its best value. Register it after ``EvalHook``.

    Args:
        eval_period: iterations between two evaluations; 0 reads the metric at the end only.
        checkpointer: saves the file.
        val_metric: name of the metric, such as ``"segm/AP"``.
        mode: ``"max"`` if higher is better, ``"min"`` if lower is better.
        file_prefix: name of the file without its extension.

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
            raise ValueError(f"mode is {mode!r}: expected 'max' or 'min'")
        self._period, self._checkpointer = eval_period, checkpointer
        self._val_metric, self._file_prefix = val_metric, file_prefix
        self._is_better = _IS_BETTER[mode]
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def act(self) -> None:
        """Compare the latest value with the best one."""
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
        """Return the best value, so that a resumed training does not replace the best checkpoint by a worse one."""
        return {} if self.best_metric is None else {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
