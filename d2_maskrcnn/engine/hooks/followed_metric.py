"""Base class of the hooks that follow a metric."""

import logging
import math
from typing import Any, TypeVar

from d2_maskrcnn.config.rules import MODES
from d2_maskrcnn.engine.hooks.evaluation import evaluation_is_due
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.metric_names import describe_metrics
from detectron2.engine import HookBase
from detectron2.utils import comm

T = TypeVar("T")

logger = logging.getLogger(__name__)


class MetricHook(HookBase):
    """Look at a metric once after each evaluation. Register it after the hook that evaluates.

    All processes use the value of the main process, so that all decide alike.

    Args:
        metric: its name in the event storage, e.g. ``segm/AP`` or ``validation/total_loss``.
        mode: ``max`` if larger is better, ``min`` if smaller is better.

    Raises:
        UserError: unknown ``mode``.
    """

    trainer: Any

    def __init__(self, metric: str, mode: str = "max") -> None:
        if mode not in MODES:
            raise UserError(f"The mode of the metric {metric!r} is {mode!r}; expected one of {', '.join(MODES)}.")
        self.metric, self.mode = metric, mode
        self.best: float | None = None
        self.best_iter = -1
        self.last_iter = -1  # iteration of the value that was seen last

    def after_step(self) -> None:
        """Call :meth:`update` if this iteration has a new value."""
        if not evaluation_is_due(self.trainer):
            return
        latest = from_main_process(self.trainer.storage.latest().get(self.metric))
        if latest is None:
            self._warn_missing()
        elif latest[1] != self.last_iter:
            self.last_iter = latest[1]
            self.update(latest[0])

    def update(self, value: float) -> None:
        """Handle a new value of the metric."""
        raise NotImplementedError

    def is_better(self, value: float, margin: float = 0.0) -> bool:
        """Return whether ``value`` is better than the best one by more than ``margin``; NaN and infinity never are."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        return value > self.best + margin if self.mode == "max" else value < self.best - margin

    def _warn_missing(self) -> None:
        if comm.is_main_process():
            known = sorted(name for name in self.trainer.storage.latest() if "/" in name)
            hint = describe_metrics(self.metric, known)
            logger.warning("%s: no metric %r. %s", type(self).__name__, self.metric, hint)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its iteration, and what metric it belongs to."""
        return {
            "best": self.best,
            "best_iter": self.best_iter,
            "last_iter": self.last_iter,
            "metric": self.metric,
            "mode": self.mode,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, unless it belongs to another metric."""
        if not self._is_same_metric(state_dict):
            logger.warning(
                "%s: the checkpoint followed %s (%s), this run follows %s (%s); starting without a best value",
                type(self).__name__,
                state_dict["metric"],
                state_dict.get("mode", self.mode),
                self.metric,
                self.mode,
            )
            return
        self.best, self.best_iter = state_dict["best"], state_dict["best_iter"]
        self.last_iter = state_dict["last_iter"]

    def _is_same_metric(self, state_dict: dict[str, Any]) -> bool:
        return (state_dict["metric"], state_dict.get("mode", self.mode)) == (self.metric, self.mode)


def from_main_process(value: T) -> T:
    """Return the main process's ``value`` in every process; every process must call it."""
    return comm.all_gather(value)[0]
