"""End a training that does not improve, also across resumed runs."""

import logging
from pathlib import Path
from typing import Any

from d2_maskrcnn.engine.hooks.followed_metric import MetricHook
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.evaluation.metric_names import resolve_metric
from detectron2.config import CfgNode
from detectron2.engine import hooks

FINAL_NAME = "model_final"

logger = logging.getLogger(__name__)


class EarlyStopping(MetricHook):
    """End the training after ``patience`` consecutive evaluations that do not improve by more than ``min_delta``.

    Args:
        metric: see :class:`MetricHook`.
        mode: see :class:`MetricHook`.
        patience: number of evaluations, at least 1.
        min_delta: in the unit of the metric, at least 0.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(self, metric: str, mode: str, patience: int, min_delta: float = 0.0) -> None:
        super().__init__(metric, mode)
        if patience < 1 or min_delta < 0:
            raise UserError(
                f"D2_MASKRCNN.EARLY_STOPPING has PATIENCE {patience} and MIN_DELTA {min_delta}; expected PATIENCE of "
                "at least 1 and MIN_DELTA of at least 0."
            )
        self.patience, self.min_delta = patience, min_delta
        self.bad_evaluations = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "EarlyStopping | None":
        """Build the hook of ``D2_MASKRCNN.EARLY_STOPPING``; None if it is off.

        Raises:
            UserError: no evaluation of ``DATASETS.TEST`` computes that metric.
        """
        node = cfg.D2_MASKRCNN.EARLY_STOPPING
        if not node.PATIENCE or not cfg.DATASETS.TEST:
            return None
        return cls(resolve_metric(cfg, "EARLY_STOPPING"), node.MODE, node.PATIENCE, node.MIN_DELTA)

    def is_exhausted(self) -> bool:
        """Return whether the patience is exhausted."""
        return self.bad_evaluations >= self.patience

    def before_train(self) -> None:
        """Keep a training that was stopped early at its end when it is resumed, unless the patience was raised."""
        if self.is_exhausted():
            logger.info(
                "This training stopped early after iteration %d; raise D2_MASKRCNN.EARLY_STOPPING.PATIENCE (%d) to "
                "continue.",
                self.trainer.start_iter - 1,
                self.patience,
            )
            self.trainer.max_iter = self.trainer.start_iter

    def update(self, value: float) -> None:
        """Count evaluations without improvement, and end the training when the patience is exhausted."""
        if self.is_better(value, self.min_delta):
            self.best, self.best_iter, self.bad_evaluations = value, self.trainer.iter, 0
            return
        self.bad_evaluations += 1
        best = "none" if self.best is None else f"{self.best:.4g}"
        needed = f" by more than {self.min_delta:g}" if self.min_delta else ""
        logger.info(
            "%s: %.4g, best %s. Evaluations in a row without a better one%s: %d; the training stops at %d.",
            self.metric, value, best, needed, self.bad_evaluations, self.patience,
        )  # fmt: skip
        if self.is_exhausted():
            logger.info(
                "Stopping early after iteration %d; the best iteration was %d", self.trainer.iter, self.best_iter
            )
            self.trainer.max_iter = self.trainer.iter + 1  # the hooks after this one see the last iteration

    def state_dict(self) -> dict[str, Any]:
        """Return the state of :class:`MetricHook` and the number of evaluations without improvement."""
        return {**super().state_dict(), "bad_evaluations": self.bad_evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if self._is_same_metric(state_dict):
            self.bad_evaluations = state_dict["bad_evaluations"]


class SaveCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook for a training that :class:`EarlyStopping` may end before ``SOLVER.MAX_ITER``."""

    def after_step(self) -> None:
        """Save every ``SOLVER.CHECKPOINT_PERIOD`` iterations and in the last one."""
        self.max_iter = self.trainer.max_iter
        super().after_step()

    def after_train(self) -> None:
        """Save ``model_final.pth`` if the run was killed between its last periodic checkpoint and this file."""
        trainer = self.trainer
        if trainer.iter >= trainer.max_iter > 0 and Path(self.checkpointer.get_checkpoint_file()).stem != FINAL_NAME:
            trainer.iter -= 1  # checkpoints contain the last iteration that was finished
            self.checkpointer.save(FINAL_NAME, iteration=trainer.iter)
            trainer.iter += 1
