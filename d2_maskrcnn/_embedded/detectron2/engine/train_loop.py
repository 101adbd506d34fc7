"""Train a model with an optimizer: what an iteration is, in full or mixed precision."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from detectron2._names import lookup
from detectron2.engine.trainer_base import HookBase, TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

Losses = Mapping[str, torch.Tensor]


class SimpleTrainer(TrainerBase):
    """Run iterations of: read a batch, compute the losses, backward, update the weights.

    Args:
        model: takes a batch, returns a dict of scalar losses or one scalar loss; put in training mode.
        data_loader: endless iterable of batches.
        optimizer: updates the model.
        gather_metric_period: iterations between two readings of the losses from all processes.
        zero_grad_before_forward: whether gradients are cleared before the forward pass instead of before the backward
            pass, for models whose forward pass leaves gradients.
        async_write_metrics: for programs written for Detectron2; without effect, since all losses are read from the
            device at once.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.gather_metric_period, self.zero_grad_before_forward = gather_metric_period, zero_grad_before_forward
        self._batches: Iterator[Any] | None = None

    @property
    def _data_loader_iter(self) -> Iterator[Any]:
        # Created at the first use, so that no worker process starts where nothing is trained.
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return self._batches

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable[Any]]) -> None:
        """Replace the loader by ``data_loader_builder()``, after the old one and its workers are gone."""
        self.data_loader = self._batches = None  # type: ignore[assignment]
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
            RuntimeError: the model is in evaluation mode.
        """
        if not self.model.training:
            raise RuntimeError(f"{type(self.model).__name__} was switched to evaluation mode during the training")
        began = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - began
        clear, early = self.optimizer.zero_grad, self.zero_grad_before_forward
        if early:
            clear()
        losses = self._compute_losses(batch)
        if not early:
            clear()
        self._compute_gradients(torch.stack(list(losses.values())).sum())
        self.after_backward()
        self._write_metrics(losses, waited)
        self._update_weights()

    def _compute_losses(self, batch: Any) -> Losses:
        losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _compute_gradients(self, total_loss: torch.Tensor) -> None:
        total_loss.backward()

    def _update_weights(self) -> None:
        self.optimizer.step()

    def _write_metrics(self, loss_dict: Losses, data_time: float, prefix: str = "", iter: int | None = None) -> None:
        current = self.iter if iter is None else iter
        if (current + 1) % self.gather_metric_period == 0:
            self.write_metrics(loss_dict, data_time, current, prefix)

    @staticmethod
    def write_metrics(loss_dict: Losses, data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Write the losses, averaged over processes, and the longest time for data to the event storage.

        Every process must call it; the main process writes.

        Args:
            loss_dict: scalar losses of this process.
            data_time: seconds that this process waited for its batch.
            cur_iter: the iteration, for the error message.
            prefix: prepended to the names of the losses.

        Raises:
            FloatingPointError: the sum of the losses is not finite.
        """
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time)
        # One copy from the device for all losses.
        values = torch.stack([loss.detach().float() for loss in loss_dict.values()]).tolist()
        of_processes = comm.gather((data_time, values))
        if not comm.is_main_process():
            return
        times, columns = zip(*of_processes, strict=True)
        means = [sum(column) / len(column) for column in zip(*columns, strict=True)]
        named = {f"{prefix}{name}": mean for name, mean in zip(loss_dict, means, strict=True)}
        if not math.isfinite(sum(means)):
            raise FloatingPointError(f"The loss became infinite or NaN in iteration {cur_iter}: {named}")
        storage.put_scalars(data_time=max(times), **{f"{prefix}total_loss": sum(means), **named})

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of hooks and optimizer."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """Run :class:`SimpleTrainer`'s iterations with the forward pass under autocast, on any device that supports it.

    Args:
        model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward: see :class:`SimpleTrainer`.
        grad_scaler: scales the loss so that small gradients do not underflow; None creates one that is active for
            float16 only, since bfloat16 has the range of float32.
        precision: ``torch.float16`` or ``torch.bfloat16``. CPUs have fast kernels for bfloat16 only.
        log_grad_scaler: whether the scale is written to the event storage.
        async_write_metrics: see :class:`SimpleTrainer`.
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
        async_write_metrics: bool = False,
    ) -> None:
        super().__init__(model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward)
        self._device_type = next(model.parameters()).device.type
        self.precision, self.log_grad_scaler = precision, log_grad_scaler
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)

    def _compute_losses(self, batch: Any) -> Losses:
        with torch.autocast(self._device_type, dtype=self.precision):
            return super()._compute_losses(batch)

    def _compute_gradients(self, total_loss: torch.Tensor) -> None:
        self.grad_scaler.scale(total_loss).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _update_weights(self) -> None:
        self.grad_scaler.step(self.optimizer)  # skipped if a gradient overflowed
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of :class:`SimpleTrainer` and of the scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if scaler_state := state_dict.get("grad_scaler"):  # empty for an inactive scaler
            self.grad_scaler.load_state_dict(scaler_state)


__getattr__ = lookup(__name__)
