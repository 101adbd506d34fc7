"""Hooks that change the state of the training: the learning rate and the statistics of batch normalization."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from detectron2.engine.train_loop import HookBase
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)


class LRScheduler(HookBase):
    """Step a schedule after each iteration, and write the learning rate of the iteration to the storage as ``lr``.

    Args:
        optimizer: None for the trainer's.
        scheduler: a PyTorch scheduler, or an fvcore ``ParamScheduler`` that multiplies the optimizer's rates; None for
            the trainer's.
    """

    def __init__(
        self, optimizer: Optimizer | None = None, scheduler: TorchScheduler | ParamScheduler | None = None
    ) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self._logged_group = 0

    @property
    def scheduler(self) -> Any:
        """The schedule: the given one or the trainer's."""
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def before_train(self) -> None:
        """Take from the trainer what was not given."""
        optimizer = self._optimizer = self._optimizer or self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, ParamScheduler):
            last = self.trainer.iter - 1
            self._scheduler = LRMultiplier(optimizer, self.scheduler, self.trainer.max_iter, last_iter=last)
        self._logged_group = self.get_best_param_group_id(optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: Optimizer) -> int:
        """Return the index of the group whose rate is logged: the largest, or one with the most common rate if every
        group has one parameter.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        """Write the rate of this iteration and set that of the next one."""
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._logged_group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's state."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if isinstance(self.scheduler, TorchScheduler):
            logger.info("Loading the state of the learning-rate scheduler")
            self.scheduler.load_state_dict(state_dict)


class PreciseBN(HookBase):
    """Replace the running averages of batch normalization by averages over batches under fixed weights.

    Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3. Register it before hooks that evaluate or save.

    Args:
        period: iterations between two updates; 0 updates at the end only.
        model: nothing is done if it has no batch normalization in training mode.
        data_loader: iterable of training batches.
        num_iter: batches to average over.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel) and comm.get_world_size() == 1
        self._model: Any = model.module if wrapped else model
        self._period, self._num_iter = period, num_iter
        self._data_loader = data_loader
        self._batches: Iterator[Any] | None = None
        self._active = bool(get_bn_modules(self._model))
        if not self._active:
            logger.info("PreciseBN: the model has no batch normalization in training mode; nothing to do")

    def after_step(self) -> None:
        """Update if it is due."""
        finished = self.trainer.iter + 1
        if finished == self.trainer.max_iter or (self._period > 0 and finished % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the statistics now."""
        if not self._active:
            return
        self._batches = self._batches or iter(self._data_loader)
        logger.info("PreciseBN: averaging over %d batches", self._num_iter)
        with EventStorage():  # the losses of these passes are not the training's
            update_bn_stats(self._model, itertools.islice(self._batches, self._num_iter), self._num_iter)
