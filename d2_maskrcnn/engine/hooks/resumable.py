"""Detectron2's hooks, for a training that can be resumed anywhere and may end early; and two small ones of our own."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from d2_maskrcnn.data.loader import ResumableTrainLoader
from d2_maskrcnn.evaluation.prediction_images import draw_test_sets
from d2_maskrcnn.evaluation.validation_loss import evaluation_is_due
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class SaveCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, for a training whose last iteration may come early."""

    def after_step(self) -> None:
        """Saves if it is time."""
        self.max_iter = self.trainer.max_iter
        super().after_step()


class WriteEvents(hooks.PeriodicWriter):
    """Detectron2's hook, which also writes after each evaluation: no evaluation's numbers are passed over, however
    seldom the log is written.
    """

    def after_step(self) -> None:
        """Writes if it is time."""
        trainer: Any = self.trainer
        is_periodic = (trainer.iter + 1) % self._period == 0 or trainer.iter == trainer.max_iter - 1
        if is_periodic or (trainer.cfg.DATASETS.TEST and evaluation_is_due(trainer)):
            for writer in self._writers:
                writer.write()


class ResumablePreciseBN(hooks.PreciseBN):
    """Detectron2's hook whose batches are a function of (seed, iteration), so that a resumed training sees the same.

    Args:
        period: iterations between two updates; 0 updates at the end only.
        model: whose batch norms get new statistics.
        loader: gives training batches; of its own, not the training's.
        num_iter: batches to average over.
    """

    def __init__(self, period: int, model: nn.Module, loader: ResumableTrainLoader, num_iter: int) -> None:
        super().__init__(period, model, loader, num_iter)
        self._loader = loader

    def after_step(self) -> None:
        """Updates if it is time."""
        trainer: Any = self.trainer
        self._loader.set_seed(trainer.seed)
        self._loader.set_start_iter(trainer.iter)
        for name in ("_batches", "_data_iter"):  # the iterator that an earlier update left, on either engine
            if hasattr(self, name):
                setattr(self, name, None)
        super().after_step()


class EvaluateAtEnd(HookBase):
    """Calls a function in the last iteration and puts what it returns into the storage.

    It belongs behind what may end the training early, and in front of the hooks that save.

    Args:
        name: in front of the numbers' names.
        function: returns a nested dict of numbers; every process calls it.
    """

    def __init__(self, name: str, function: Callable[[], Mapping[str, Any]]) -> None:
        self.name, self.function = name, function

    def after_step(self) -> None:
        """Evaluates if this is the last iteration."""
        trainer: Any = self.trainer
        if trainer.iter + 1 != trainer.max_iter:
            return
        for name, value in flatten_results_dict({self.name: dict(self.function())}).items():
            trainer.storage.put_scalar(name, float(value), smoothing_hint=False)
        comm.synchronize()


class DrawPredictions(HookBase):
    """Leaves images of what the finished model finds on the test sets."""

    def after_train(self) -> None:
        """Draws if the training came to its end."""
        trainer: Any = self.trainer
        if trainer.iter < trainer.max_iter:
            return
        draw_test_sets(trainer.cfg, trainer.model)
