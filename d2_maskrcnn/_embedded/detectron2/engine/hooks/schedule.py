"""The hook that moves the learning rate."""

import logging
from collections import Counter
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

from detectron2.engine.train_loop import HookBase
from detectron2.solver import LRMultiplier

logger = logging.getLogger(__name__)


class LRScheduler(HookBase):
    """Steps a learning-rate scheduler after each iteration, and puts the rate that was used into the storage as ``lr``.

    Args:
        optimizer: None takes the trainer's.
        scheduler: a torch scheduler, or an fvcore ``ParamScheduler`` as a multiplier of the optimizer's rates; None
            takes the trainer's.
    """

    def __init__(
        self, optimizer: Optimizer | None = None, scheduler: TorchScheduler | ParamScheduler | None = None
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._shown_group = 0

    def before_train(self) -> None:
        """Takes what was not given from the trainer."""
        if self._optimizer is None:
            self._optimizer = self.trainer.optimizer  # type: ignore[attr-defined]
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._shown_group = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: Optimizer) -> int:
        """The group whose rate is shown: the largest; where all have one parameter, one with the commonest rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common(1)[0][0])

    def after_step(self) -> None:
        """Records the rate of this iteration and sets that of the next."""
        assert self._optimizer is not None
        rate = self._optimizer.param_groups[self._shown_group]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> Any:
        """The scheduler that was given, or the trainer's."""
        return self._scheduler or self.trainer.scheduler  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state."""
        return self.scheduler.state_dict() if isinstance(self.scheduler, TorchScheduler) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        if isinstance(self.scheduler, TorchScheduler):
            logger.info("Loading the state of the learning-rate scheduler")
            self.scheduler.load_state_dict(state_dict)
