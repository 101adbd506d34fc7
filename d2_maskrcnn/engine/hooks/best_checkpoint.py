"""The best model so far, and the end of a training that does not get better. Both survive ``--resume``."""

import logging
import math
import pickle
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.config.validation import MODES
from d2_maskrcnn.engine.hooks.ema import SUFFIX, save_average
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.metric_names import describe_metrics, resolve_metric, warn_of_direction
from d2_maskrcnn.evaluation.validation_loss import evaluation_is_due, shared_metric
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

BEST_NAME = "model_best"

logger = logging.getLogger(__name__)


class MetricHook(HookBase):
    """Looks at a metric once after each evaluation. It belongs behind the hook that evaluates.

    All processes see the main one's value, so all decide alike.

    Args:
        metric: its name among the scalars, e.g. ``segm/AP`` or ``validation/total_loss``.
        mode: ``max`` if larger is better, ``min`` if smaller is.

    Raises:
        UserError: ``mode`` is neither.
    """

    trainer: Any

    def __init__(self, metric: str, mode: str = "max") -> None:
        if mode not in MODES:
            raise UserError(f"The mode of the metric {metric!r} is {mode!r}; expected one of {', '.join(MODES)}.")
        self.metric, self.mode = metric, mode
        self.best: float | None = None
        self.best_iter = -1
        self.last_iter = -1  # of the value that was looked at last

    def after_step(self) -> None:
        """Looks at the metric if there is a new value."""
        if not evaluation_is_due(self.trainer):
            return
        found = shared_metric(self.trainer, self.metric)
        if found is None:
            self._warn_missing()
        elif found[1] != self.last_iter:
            self.last_iter = found[1]
            self.see(found[0])

    def see(self, value: float) -> None:
        """Judges a new value."""
        raise NotImplementedError

    def is_better(self, value: float, margin: float = 0.0) -> bool:
        """Whether ``value`` is better than the best by more than ``margin``. NaN never is."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        return value > self.best + margin if self.mode == "max" else value < self.best - margin

    def _warn_missing(self) -> None:
        if comm.is_main_process():
            known = sorted(name for name in self.trainer.storage.latest() if "/" in name)
            hint = describe_metrics(self.metric, known)
            logger.warning("%s: there is no metric %r. %s", type(self).__name__, self.metric, hint)

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far."""
        return {
            "best": self.best,
            "best_iter": self.best_iter,
            "last_iter": self.last_iter,
            "metric": self.metric,
            "mode": self.mode,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave, unless it is about another metric, whose numbers say nothing."""
        if not self._is_about_the_same(state_dict):
            logger.warning(
                "%s: the checkpoint followed %s (%s), this run follows %s (%s): it starts anew",
                type(self).__name__,
                state_dict["metric"],
                state_dict.get("mode", self.mode),
                self.metric,
                self.mode,
            )
            return
        self.best, self.best_iter = state_dict["best"], state_dict["best_iter"]
        self.last_iter = state_dict["last_iter"]

    def _is_about_the_same(self, state_dict: dict[str, Any]) -> bool:
        return (state_dict["metric"], state_dict.get("mode", self.mode)) == (self.metric, self.mode)


class BestCheckpoint(MetricHook):
    """Saves ``model_best.pth`` whenever the metric is better than ever before, also before a restart; and where weights
    are averaged, the average as ``model_best_ema.pth``.

    A process that is killed after it saved the best leaves a file that is newer than what a resumed training knows. On
    a GPU, whose sums are not the same each time, that training may miss the value by a little: so the file is asked,
    too.
    """

    def before_train(self) -> None:
        """Takes the file's value for the best so far if it is better than the checkpoint's."""
        if not self.trainer.resumed:
            return
        of_file = _best_of_file(Path(self.trainer.cfg.OUTPUT_DIR) / f"{BEST_NAME}.pth", self.metric)
        found = comm.all_gather(of_file)[0]
        if found is not None and self.is_better(found[0]):
            self.best, self.best_iter = found

    def see(self, value: float) -> None:
        """Saves if ``value`` is the best."""
        if not self.is_better(value):
            return
        self.best, self.best_iter = value, self.trainer.iter
        logger.info("Best %s so far: %.5g in iteration %d", self.metric, value, self.best_iter)
        save_average(self.trainer, BEST_NAME, self.best_iter)
        self.trainer.checkpointer.save(
            BEST_NAME, iteration=self.best_iter, best_metric={"name": self.metric, "value": value}
        )

    def files(self) -> list[Path]:
        """Return the best checkpoint's files that exist: the weights, then their moving average."""
        suffixes = ("", SUFFIX) if self.trainer.average else ("",)
        paths = [Path(self.trainer.cfg.OUTPUT_DIR) / f"{BEST_NAME}{suffix}.pth" for suffix in suffixes]
        return [path for path in paths if path.is_file()]


class EarlyStopping(MetricHook):
    """Ends the training after ``patience`` evaluations in a row that were not better by more than ``min_delta``.

    Args:
        patience: evaluations, 1 or more.
        min_delta: in the metric's unit, 0 or more.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(self, metric: str, mode: str, patience: int, min_delta: float = 0.0) -> None:
        super().__init__(metric, mode)
        if patience < 1 or min_delta < 0:
            raise UserError(
                f"D2_MASKRCNN.EARLY_STOPPING has PATIENCE {patience} and MIN_DELTA {min_delta}: expected at least 1 "
                "evaluation and no negative difference."
            )
        self.patience, self.min_delta = patience, min_delta
        self.bad_evaluations = 0

    def before_train(self) -> None:
        """A training that has stopped stays so when it is resumed, unless the patience was raised."""
        if self.bad_evaluations >= self.patience:
            logger.info(
                "This training stopped early after iteration %d; raise D2_MASKRCNN.EARLY_STOPPING.PATIENCE (%d) to go "
                "on.",
                self.trainer.start_iter - 1,
                self.patience,
            )
            self.trainer.max_iter = self.trainer.start_iter

    def see(self, value: float) -> None:
        """Counts, and stops when the patience is over."""
        if self.is_better(value, self.min_delta):
            self.best, self.best_iter, self.bad_evaluations = value, self.trainer.iter, 0
            return
        self.bad_evaluations += 1
        than = "which is no number" if self.best is None else f"not better than {self.best:.5g} by {self.min_delta:g}"
        logger.info("%s is %.5g, %s (%d of %d times)", self.metric, value, than, self.bad_evaluations, self.patience)
        if self.bad_evaluations >= self.patience:
            logger.info(
                "Stopping early after iteration %d: the best was in iteration %d", self.trainer.iter, self.best_iter
            )
            self.trainer.max_iter = self.trainer.iter + 1  # hooks behind this one see the last iteration

    def state_dict(self) -> dict[str, Any]:
        """What has been seen so far, and how often it was not better."""
        return {**super().state_dict(), "bad_evaluations": self.bad_evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        if self._is_about_the_same(state_dict):
            self.bad_evaluations = state_dict["bad_evaluations"]


def build_judges(cfg: CfgNode) -> list[HookBase]:
    """What follows a metric. Patience comes first: the best checkpoint keeps its state, too.

    Raises:
        UserError: no evaluation of ``DATASETS.TEST`` gives that metric.
    """
    stop, best = cfg.D2_MASKRCNN.EARLY_STOPPING, cfg.D2_MASKRCNN.BEST_CHECKPOINT
    found: list[HookBase] = []
    if stop.PATIENCE:
        metric = resolve_metric(cfg, "EARLY_STOPPING")
        warn_of_direction("EARLY_STOPPING", metric, stop.MODE)
        found.append(EarlyStopping(metric, stop.MODE, stop.PATIENCE, stop.MIN_DELTA))
    if best.ENABLED:
        metric = resolve_metric(cfg, "BEST_CHECKPOINT")
        warn_of_direction("BEST_CHECKPOINT", metric, best.MODE)
        found.append(BestCheckpoint(metric, best.MODE))
    return found


def _best_of_file(path: Path, metric: str) -> tuple[float, int] | None:
    """The value of ``metric`` and the iteration that a best checkpoint was saved with; None where it has none."""
    if not path.is_file():
        return None
    try:  # mapped, not read: only the few bytes that are looked at
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        saved = content["best_metric"]
        return (float(saved["value"]), int(content["iteration"])) if saved["name"] == metric else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        logger.warning("%s cannot be read (%s): the checkpoint's best value counts", path, type(error).__name__)
        return None
