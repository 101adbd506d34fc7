"""One training iteration: data, forward, check, backward, update."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.engine.randomness import seed_iteration
from d2_maskrcnn.errors import UserError
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm


class TrainStep(SimpleTrainer):
    """Runs iterations that depend on (weights, optimiser, seed, iteration) alone, so that a resumed training is the
    same training.

    It differs from Detectron2's ``SimpleTrainer`` in three ways: randomness is seeded anew for each iteration, a loss
    that is not finite stops the training before it can spoil a weight and names its pictures, and mixed precision is a
    switch instead of a second class.

    Args:
        model: takes a list of dicts, returns a dict of scalar losses. Put in training mode.
        data_loader: gives lists of dicts, without end.
        optimizer: updates the model.
        seed: of the whole training, the same on all ranks.
        amp_dtype: dtype of the forward pass under autocast; None for float32 throughout.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.device_type = next(model.parameters()).device.type
        # Gradients of float16 underflow without scaling; those of bfloat16 and float32 have the exponents they need.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=amp_dtype == torch.float16)
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    def run_step(self) -> None:
        """One iteration.

        Raises:
            UserError: a loss is NaN or infinite; nothing has been updated.
        """
        start = time.perf_counter()
        batch = self._read_batch()
        data_time = time.perf_counter() - start

        seed_iteration(self.seed, self.iter, comm.get_rank())
        losses = self._forward(batch)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} = {float(loss):.4g}" for name, loss in losses.items())
            raise UserError(self._describe_non_finite(values, batch))
        self.optimizer.zero_grad()
        self.grad_scaler.scale(total).backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        try:
            with self._autocast():
                return self.model(batch)
        except FloatingPointError as error:  # the proposal stage refuses boxes that are not finite
            raise UserError(self._describe_non_finite(str(error).rstrip("."), batch)) from error

    def _read_batch(self) -> list[dict[str, Any]]:
        # Created at the first iteration, not before: by then a resumed training has told the loader where to start.
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return next(self._batches)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device_type, dtype=self.amp_dtype) if self.amp_dtype else nullcontext()

    def _describe_non_finite(self, what: str, batch: list[dict[str, Any]]) -> str:
        names = [str(record.get("file_name", "a picture without file_name")) for record in batch]
        culprits = [name for name, record in zip(names, batch, strict=True) if not self._is_finite_alone(record)]
        blame = f"; alone, these give a loss that is not finite: {', '.join(culprits)}" if culprits else ""
        return (
            f"The loss is not finite at iteration {self.iter} ({what}). "
            f"Pictures of this batch: {', '.join(names)}{blame}. "
            "No weight was changed; look at these pictures and their annotations, lower SOLVER.BASE_LR or clip "
            "gradients (SOLVER.CLIP_GRADIENTS.ENABLED True), then go on from the last checkpoint with --resume."
        )

    def _is_finite_alone(self, record: dict[str, Any]) -> bool:
        model = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        with torch.no_grad(), self._autocast():
            try:
                losses = model([record])
            except FloatingPointError:  # boxes that are not finite are refused by the proposal stage itself
                return False
        return bool(torch.isfinite(torch.stack(list(losses.values())).sum()))

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and, with float16, the gradient scaler's."""
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        state = dict(state_dict)
        scaler = state.pop("grad_scaler", None)
        super().load_state_dict(state)
        if scaler:
            self.grad_scaler.load_state_dict(scaler)
