"""What an iteration of the usual training does."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from detectron2.engine.trainer_base import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

LossDict = Mapping[str, torch.Tensor]


class SimpleTrainer(TrainerBase):
    """An iteration is: next batch, losses, backward, optimizer step.

    Args:
        model: takes a batch, returns a dict of scalar losses or one loss. It is put into training mode.
        data_loader: gives batches without end.
        optimizer: updates ``model``.
        gather_metric_period: losses are read from the device and gathered every so many iterations.
        zero_grad_before_forward: clear the gradients before the forward pass instead of before the backward pass, for
            models that leave gradients of their own in the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._data_loader_iter_obj: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Made when the first batch is wanted: worker processes start then, and not where nothing is trained.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Drops the loader, with its workers, and takes the one that ``data_loader_builder()`` returns."""
        self._data_loader_iter_obj = None
        del self.data_loader
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """One iteration.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _next_batch(self) -> tuple[Any, float]:
        """A batch, and the seconds that it took."""
        if not self.model.training:
            raise RuntimeError(f"{type(self.model).__name__} was switched to evaluation mode during the training")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    @staticmethod
    def _sum_losses(losses: torch.Tensor | dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if isinstance(losses, torch.Tensor):
            return {"total_loss": losses}, losses
        return losses, torch.stack(list(losses.values())).sum()

    def _write_metrics(self, loss_dict: LossDict, data_time: float, prefix: str = "", iter: int | None = None) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(loss_dict: LossDict, data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Puts the losses, averaged over all processes, and the longest time for data into the event storage.

        Every process must call it; only the first one writes.

        Args:
            loss_dict: scalar losses of this process.
            data_time: seconds that this process waited for its batch.
            cur_iter: the iteration, for the error message.
            prefix: put before every loss's name.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        # One copy from the device for all losses instead of one for each.
        values = torch.stack([loss.detach().float() for loss in loss_dict.values()]).tolist()
        gathered = comm.gather((data_time, values))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for seconds, _ in gathered))
        means = [sum(of_all) / len(of_all) for of_all in zip(*(values for _, values in gathered), strict=True)]
        losses = {prefix + name: mean for name, mean in zip(loss_dict, means, strict=True)}
        total = sum(means)
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss became infinite or NaN in iteration {cur_iter}: {losses}")
        storage.put_scalar(f"{prefix}total_loss", total)
        if len(losses) > 1:
            storage.put_scalars(**losses)

    def state_dict(self) -> dict[str, Any]:
        """The iteration, the hooks' states and the optimizer's."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with the forward pass in mixed precision, on any device that has autocast.

    Args:
        model: as for :class:`SimpleTrainer`.
        data_loader: as for :class:`SimpleTrainer`.
        optimizer: as for :class:`SimpleTrainer`.
        gather_metric_period: as for :class:`SimpleTrainer`.
        zero_grad_before_forward: as for :class:`SimpleTrainer`.
        grad_scaler: scales the loss so that small gradients survive; None makes one that is active for float16 alone,
            since bfloat16 has the range of float32.
        precision: ``torch.float16`` or ``torch.bfloat16``; on CPUs bfloat16 is the one with fast kernels.
        log_grad_scaler: put the scale into the event storage.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
    ) -> None:
        super().__init__(model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward)
        self._device_type = next(model.parameters()).device.type
        if grad_scaler is None:
            grad_scaler = torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)
        self.grad_scaler = grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self) -> None:
        """One iteration; an update whose gradients overflowed is skipped by the scaler.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        data, data_time = self._next_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self._device_type, dtype=self.precision):
            loss_dict, losses = self._sum_losses(self.model(data))
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """As for :class:`SimpleTrainer`, and the scaler's state."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        scaler_state = state_dict.get("grad_scaler")
        if scaler_state:  # empty where the scaler was inactive
            self.grad_scaler.load_state_dict(scaler_state)
