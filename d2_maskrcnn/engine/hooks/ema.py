"""Exponential moving average of the weights (Polyak and Juditsky 1992), evaluated and saved beside the weights."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import check_value
from d2_maskrcnn.weights.atomic import atomic_torch_save
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

SUFFIX = "_ema"  # of weight files with averaged weights

logger = logging.getLogger(__name__)


class WeightAverage:
    """Average everything that changes in training: trainable weights and the running statistics of normalization.

    After update t (from 1) with weights w: average = d * average + (1 - d) * w. d = min(decay, (1 + t) / (10 + t)) lets
    the average forget the initial weights quickly.

    Args:
        model: not wrapped in DistributedDataParallel.
        decay: in [0, 1).

    Raises:
        UserError: ``decay`` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check_value("D2_MASKRCNN.EMA.DECAY", decay, default=0.999)
        self.model, self.decay = model, decay
        self.updates = 0
        self.values: dict[str, torch.Tensor] = {}
        self.restart()

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> "WeightAverage | None":
        """Build the average of ``D2_MASKRCNN.EMA``; None if it is off."""
        return cls(model, cfg.D2_MASKRCNN.EMA.DECAY) if cfg.D2_MASKRCNN.EMA.ENABLED else None

    def _tracked(self) -> dict[str, torch.Tensor]:
        weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        saved = self.model.state_dict()  # excludes non-persistent buffers such as the pixel mean
        return {**weights, **{name: b for name, b in self.model.named_buffers() if name in saved}}

    def restart(self) -> None:
        """Set the average to the model's current weights."""
        self.updates = 0
        self.values = {name: value.clone() for name, value in self._tracked().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's current weights to the average."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, current = [], []
        for name, value in self._tracked().items():
            if value.is_floating_point():
                averages.append(self.values[name])
                current.append(value)
            else:  # num_batches_tracked of batch normalization
                self.values[name].copy_(value)
        torch._foreach_lerp_(averages, current, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights inside the ``with`` block, and its own weights back after it."""
        own = {name: value.clone() for name, value in self._tracked().items()}
        self._copy_to_model(self.values)
        try:
            yield
        finally:
            self._copy_to_model(own)

    @torch.no_grad()
    def _copy_to_model(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in self._tracked().items():
            value.copy_(values[name])

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the state dict of the model with averaged weights, on the CPU."""
        return {name: self.values.get(name, value).cpu() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            KeyError: a weight is missing.
        """
        for name, value in self.values.items():
            value.copy_(state_dict["values"][name])
        self.updates = state_dict["updates"]


class UpdateAverage(HookBase):
    """Update the average after every iteration, and save it as a weight file at the end of the training."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_step(self) -> None:
        """Add the weights of this iteration."""
        self.average.update()

    def after_train(self) -> None:
        """Write ``model_final_ema.pth`` if the training reached its last iteration."""
        trainer: Any = self.trainer
        if trainer.iter == trainer.max_iter:
            save_average(trainer, "model_final", trainer.iter - 1)


def with_average(average: WeightAverage | None, evaluation: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return ``{"ema": evaluation()}``, computed with the averaged weights; {} if there are none."""
    if average is None:
        return {}
    with average.applied():
        logger.info("Evaluating the averaged weights")
        return {"ema": evaluation()}


def save_average(trainer: Any, name: str, iteration: int) -> None:
    """Write the averaged weights, if there are any, to ``OUTPUT_DIR/<name>_ema.pth``, a file for ``MODEL.WEIGHTS``."""
    if trainer.average is None or not comm.is_main_process():
        return
    data = {"model": trainer.average.model_state(), "metadata": trainer.checkpointer.metadata(iteration)}
    atomic_torch_save(data, Path(trainer.cfg.OUTPUT_DIR) / f"{name}{SUFFIX}.pth")
