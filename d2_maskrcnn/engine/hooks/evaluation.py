"""Evaluate during training and at its end."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from d2_maskrcnn.data import build_resumable_train_loader
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

Evaluation = Callable[[], Mapping[str, Any]]  # returns a nested dict of numbers; called by every process


def evaluation_is_due(trainer: Any) -> bool:
    """Return whether the current iteration ends with an evaluation: every ``TEST.EVAL_PERIOD``, and in the last one."""
    done, period = trainer.iter + 1, trainer.cfg.TEST.EVAL_PERIOD
    return done == trainer.max_iter or (period > 0 and done % period == 0)


class Evaluate(HookBase):
    """Evaluate every ``TEST.EVAL_PERIOD`` iterations and in the last one, and log the numbers.

    In contrast to Detectron2's ``EvalHook``, the last evaluation takes place in the last iteration, so that the best
    checkpoint and early stopping use it before ``model_final`` is saved. Register it before the hooks that save.
    """

    trainer: Any

    def __init__(self, function: Evaluation) -> None:
        self.function = function

    def after_step(self) -> None:
        """Evaluate if it is time."""
        if evaluation_is_due(self.trainer):
            _log_numbers(self.trainer, self.function())

    def after_train(self) -> None:
        """Evaluate a resumed training that had nothing left to do."""
        if self.trainer.iter >= self.trainer.max_iter and self.trainer.iter == self.trainer.start_iter:
            _log_numbers(self.trainer, self.function())


class EvaluateAtEnd(HookBase):
    """Evaluate in the last iteration only. Register it after early stopping and before the hooks that save.

    Args:
        name: prefix of the metrics' names.
        function: the evaluation.
    """

    trainer: Any

    def __init__(self, name: str, function: Evaluation) -> None:
        self.name, self.function = name, function

    def after_step(self) -> None:
        """Evaluate if this is the last iteration."""
        if self.trainer.iter + 1 == self.trainer.max_iter:
            _log_numbers(self.trainer, {self.name: dict(self.function())})


class ResumablePreciseBN(HookBase):
    """Detectron2's ``PreciseBN`` on batches that depend only on (seed, iteration), so that training can be resumed.

    Args:
        cfg: ``TEST.EVAL_PERIOD`` is the number of iterations between two updates, 0 for the last iteration only;
            ``TEST.PRECISE_BN.NUM_ITER`` the number of batches of the training data that are averaged.
        model: its batch normalization layers get new statistics.
    """

    trainer: Any

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self.period, self.num_iter, self.model = cfg.TEST.EVAL_PERIOD, cfg.TEST.PRECISE_BN.NUM_ITER, model
        self.loader = build_resumable_train_loader(cfg, seed=0)  # of its own, since it is moved to the iteration

    def after_step(self) -> None:
        """Update the statistics if it is time."""
        if not evaluation_is_due(self.trainer):
            return
        self.loader.set_seed(self.trainer.seed)
        self.loader.set_start_iter(self.trainer.iter)
        # A new hook starts a new iterator over the loader.
        hooks.PreciseBN(self.period, self.model, self.loader, self.num_iter).update_stats()


def finite_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of nested results, with names such as ``segm/AP``."""
    numbers = {name: float(value) for name, value in flatten_results_dict(dict(results)).items()}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _log_numbers(trainer: Any, results: Mapping[str, Any]) -> None:
    for name, value in flatten_results_dict(dict(results)).items():
        trainer.storage.put_scalar(name, float(value), smoothing_hint=False)
    comm.synchronize()
