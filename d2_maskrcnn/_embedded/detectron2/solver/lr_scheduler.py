"""Learning rates that follow an fvcore parameter scheduler.

fvcore's schedulers map ``where``, the finished share of the training in [0, 1), to a multiplier of the base learning
rate. So a schedule does not depend on the number of iterations, and serves parameter groups with different base rates.
"""

import bisect
import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler

from detectron2._names import lookup
from detectron2.config import CfgNode

__all__ = [
    "LRMultiplier",
    "LRScheduler",
    "WarmupCosineLR",
    "WarmupMultiStepLR",
    "WarmupParamScheduler",
    "build_lr_scheduler",
]

logger = logging.getLogger(__name__)


class WarmupParamScheduler(ParamScheduler):
    """Precede ``scheduler`` by a warm-up (Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.2).

    The warm-up starts at ``warmup_factor * scheduler(0)``. A linear one ends at the value with which ``scheduler``
    continues.

    Args:
        scheduler: schedule after the warm-up.
        warmup_factor: multiplier of the first value, in [0, 1].
        warmup_length: share of the whole training, in [0, 1].
        warmup_method: ``"linear"``, or ``"constant"`` at the first value.
        rescale_interval: whether all of ``scheduler`` is compressed into the time after the warm-up, instead of losing
            its first part to it.

    Raises:
        ValueError: ``warmup_method`` is neither.
    """

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"Unknown warmup method {warmup_method!r}: expected 'linear' or 'constant'")
        self._scheduler, self._length, self._rescale = scheduler, warmup_length, rescale_interval
        self._first = self._last = warmup_factor * scheduler(0.0)
        if warmup_method == "linear":
            self._last = scheduler(0.0) if rescale_interval else scheduler(warmup_length)

    def __call__(self, where: float) -> float:
        """Return the value at ``where``, the finished share of the training in [0, 1)."""
        if where + self.WHERE_EPSILON < self._length:
            share = where / self._length
            return self._last * share + self._first * (1 - share)
        if self._rescale:
            # Rounded as fvcore's CompositeParamScheduler does, so that schedules equal Detectron2's to the last bit.
            rest = 1 - self._length
            end = self._length + rest
            where = (where - (end - rest)) / (end - (end - rest))
        return self._scheduler(where)


class LRMultiplier(torch_schedulers.LRScheduler):
    """Set the learning rate of every group to its base rate times ``multiplier(iteration / max_iter)``.

    Checkpoints contain the base rates and the iteration, not the multiplier: that comes from the config, so that a
    schedule can be changed before training is resumed.

    Args:
        optimizer: its groups are set; the base rate of a group is its present ``lr``.
        multiplier: a function of the finished share of the training.
        max_iter: number of iterations of the whole training.
        last_iter: the last finished iteration; -1 at the start.

    Raises:
        ValueError: ``multiplier`` is not an fvcore ``ParamScheduler``.
    """

    def __init__(self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1) -> None:
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(f"multiplier must be an fvcore ParamScheduler, got {multiplier!r}")
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Return base rates and last iteration."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the learning rate of each group in the iteration ``last_epoch``."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base_lr * factor for base_lr in self.base_lrs]


class _WarmupLR(torch_schedulers.LambdaLR):
    """Multiply the base rates by a function of the iteration, after a warm-up from ``warmup_factor`` to 1."""

    def __init__(
        self,
        optimizer: Optimizer,
        multiplier: Callable[[int], float],
        warmup_factor: float,
        warmup_iters: int,
        warmup_method: str,
        last_epoch: int,
    ) -> None:
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"Unknown warmup method {warmup_method!r}: expected 'linear' or 'constant'")

        def factor(iteration: int) -> float:
            if iteration >= warmup_iters:
                return multiplier(iteration)
            share = iteration / warmup_iters if warmup_method == "linear" else 0.0
            return multiplier(iteration) * (warmup_factor * (1 - share) + share)

        super().__init__(optimizer, factor, last_epoch)


class WarmupMultiStepLR(_WarmupLR):
    """Multiply the rates by ``gamma`` at each milestone; :func:`build_lr_scheduler` makes :class:`LRMultiplier`."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: list[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must be in increasing order, got {milestones}")
        ordered = list(milestones)

        def decay(iteration: int) -> float:
            return gamma ** bisect.bisect_right(ordered, iteration)

        super().__init__(optimizer, decay, warmup_factor, warmup_iters, warmup_method, last_epoch)


class WarmupCosineLR(_WarmupLR):
    """Decrease the rates to 0 along half a cosine; :func:`build_lr_scheduler` makes :class:`LRMultiplier`."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        def decay(iteration: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * iteration / max_iters))

        super().__init__(optimizer, decay, warmup_factor, warmup_iters, warmup_method, last_epoch)


class _DecaysOfEqualLength(ParamScheduler):
    """fvcore's fixed-gamma schedule, but defined at ``where`` = 1, which the step after the last iteration needs."""

    def __init__(self, num_decays: int, gamma: float, max_iter: int) -> None:
        self._last_value = gamma**num_decays
        self._scheduler = StepWithFixedGammaParamScheduler(
            base_value=1.0, num_decays=num_decays, gamma=gamma, num_updates=max_iter
        )

    def __call__(self, where: float) -> float:
        return self._last_value if where + self.WHERE_EPSILON >= 1 else self._scheduler(where)


def _multi_step(cfg: CfgNode) -> ParamScheduler:
    steps = [step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER]
    if len(steps) != len(cfg.SOLVER.STEPS):
        logger.warning(
            "SOLVER.STEPS %s: steps from SOLVER.MAX_ITER (%d) on are ignored", cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER
        )
    if any(step <= before for step, before in zip(steps, [0, *steps], strict=False)):
        raise ValueError(f"SOLVER.STEPS {cfg.SOLVER.STEPS}: expected iterations above 0 in increasing order")
    return MultiStepParamScheduler(
        values=[cfg.SOLVER.GAMMA**decays for decays in range(len(steps) + 1)],
        milestones=steps,
        num_updates=cfg.SOLVER.MAX_ITER,
    )


def _cosine(cfg: CfgNode) -> ParamScheduler:
    end = cfg.SOLVER.BASE_LR_END / cfg.SOLVER.BASE_LR
    if not 0 <= end <= 1:
        raise ValueError(
            f"SOLVER.BASE_LR_END ({cfg.SOLVER.BASE_LR_END}) must be between 0 and SOLVER.BASE_LR ({cfg.SOLVER.BASE_LR})"
        )
    return CosineParamScheduler(1, end)


def _fixed_gamma(cfg: CfgNode) -> ParamScheduler:
    return _DecaysOfEqualLength(cfg.SOLVER.NUM_DECAYS, cfg.SOLVER.GAMMA, cfg.SOLVER.MAX_ITER)


_SCHEDULES = {
    "WarmupMultiStepLR": _multi_step,
    "WarmupCosineLR": _cosine,
    "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """Build the schedule named ``SOLVER.LR_SCHEDULER_NAME``, with its warm-up.

    Raises:
        ValueError: the schedule or warm-up method is unknown, steps do not increase, or the end rate exceeds the base
            rate.
    """
    name = cfg.SOLVER.LR_SCHEDULER_NAME
    if name not in _SCHEDULES:
        raise ValueError(f"Unknown SOLVER.LR_SCHEDULER_NAME {name!r}: expected one of {', '.join(_SCHEDULES)}")
    multiplier = WarmupParamScheduler(
        _SCHEDULES[name](cfg),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
        cfg.SOLVER.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier, max_iter=cfg.SOLVER.MAX_ITER)


__getattr__ = lookup(__name__)
