"""The hook that recomputes the statistics of batch normalisation.

Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from detectron2.engine.train_loop import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)


class PreciseBN(HookBase):
    """Replaces the running averages of batch normalisation by averages over ``num_iter`` batches with fixed weights.

    It belongs in front of hooks that evaluate or save.

    Args:
        period: iterations between two updates; 0 updates at the end only.
        model: without layers of batch normalisation in training mode, nothing is done.
        data_loader: gives training batches.
        num_iter: batches to average over.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable[Any], num_iter: int) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel) and comm.get_world_size() == 1:
            model = model.module
        self._active = bool(get_bn_modules(model))
        if not self._active:
            logger.info("PreciseBN: the model has no batch normalisation in training mode; nothing to do")
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._batches: Iterator[Any] | None = None

    def after_step(self) -> None:
        """Updates if it is time."""
        next_iter = self.trainer.iter + 1
        is_due = self._period > 0 and next_iter % self._period == 0
        if is_due or next_iter == self.trainer.max_iter:
            self.update_stats()

    def update_stats(self) -> None:
        """Computes the statistics now."""
        if not self._active:
            return
        if self._batches is None:
            self._batches = iter(self._data_loader)
        logger.info("PreciseBN: averaging over %d batches", self._num_iter)
        with EventStorage():  # the losses of these passes are none of the training's
            update_bn_stats(self._model, itertools.islice(self._batches, self._num_iter), self._num_iter)
