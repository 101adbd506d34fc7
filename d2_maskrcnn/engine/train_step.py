"""One training iteration: read a batch, forward, check for non-finite values, backward, update."""

import math
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn import compat
from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.engine.optimizer import adapt_state, start_momenta
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.losses import collected_scalars, put_scalars, read_scalars
from d2_maskrcnn.weights.checkpoint_files import check_optimizer
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

Batch = list[dict[str, Any]]
Losses = dict[str, torch.Tensor]


class TrainStep(SimpleTrainer):
    """Run iterations that depend only on (weights, optimizer state, seed, iteration), so that training can be resumed.

    In contrast to Detectron2's ``SimpleTrainer``, the random generators are seeded in every iteration, a non-finite
    loss or gradient stops the training before any weight changes, and the message names the images. Mixed precision,
    gradient accumulation and clipping are arguments instead of subclasses.

    Losses and gradients are averaged over processes and, weighted by their number of images, over micro-batches. That
    is the loss of the whole batch up to the denominators of Mask R-CNN's losses: a mean over the sampled proposals of
    each micro-batch is not exactly the mean over all of them. Batch normalization sees one micro-batch at a time.

    Args:
        model: takes a list of dicts, returns a dict of scalar losses; put in training mode.
        data_loader: endless iterable of lists of dicts.
        optimizer: updates the model.
        seed: of the whole training, the same in all processes.
        amp_dtype: dtype of the forward pass under autocast; None for float32.
        accumulate: number of micro-batches that each batch is split into, to save memory.
        max_grad_norm: maximum L2 norm of the gradient over all weights; 0 for no clipping. The norm is logged anyway.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        amp_dtype: torch.dtype | None = None,
        accumulate: int = 1,
        max_grad_norm: float = 0.0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.accumulate, self.max_grad_norm = accumulate, max_grad_norm
        self.device = next(model.parameters()).device
        # Only float16 gradients underflow without scaling; bfloat16 has the exponent range of float32.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype == torch.float16)
        self._batches: Iterator[Batch] | None = None

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            UserError: a loss or a gradient is NaN or infinite; no weight has been updated.
        """
        start = time.perf_counter()
        batch = self.read_batch()
        data_time = time.perf_counter() - start

        seed_iteration(self.seed, self.iter, comm.get_rank())
        self.optimizer.zero_grad()
        losses = self._accumulate_gradients(batch)
        compat.write_losses(self, losses, data_time)
        self._check_and_clip(batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def read_batch(self) -> Batch:
        """Return the next batch of this process."""
        # The iterator is created in the first iteration: only then does the loader know the iteration to resume from.
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return next(self._batches)

    def _accumulate_gradients(self, batch: Batch) -> Losses:
        micro_batches = split_batch(batch, self.accumulate)
        averages: dict[str, float] = {}
        for micro_batch in micro_batches:
            with self._gradient_sync(micro_batch is micro_batches[-1]):
                with collected_scalars() as metrics:
                    losses = self._forward(micro_batch)
                share = len(micro_batch) / len(batch)
                losses = {name: loss * share for name, loss in losses.items()}
                # The only wait for the device between forward and backward pass: the losses, and what the model logs.
                numbers = read_scalars({**metrics, **losses})
                self._backward(losses, {name: numbers[name] for name in losses}, micro_batch)
            put_scalars({name: numbers[name] for name in metrics})
            for name in losses:
                averages[name] = averages.get(name, 0.0) + numbers[name]
        # On the CPU, because Detectron2 reads each loss by itself.
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in averages.items()}

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over processes only in the backward pass of the last micro-batch."""
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _forward(self, batch: Batch) -> Losses:
        try:
            with self._autocast():
                losses: Losses = self.model(batch)
        except FloatingPointError as error:  # the RPN rejects non-finite boxes
            raise UserError(self._describe_non_finite(str(error).rstrip("."), batch)) from error
        return losses

    def _backward(self, losses: Losses, numbers: dict[str, float], batch: Batch) -> None:
        if not math.isfinite(sum(numbers.values())):
            values = ", ".join(f"{name} = {value:.4g}" for name, value in numbers.items())
            raise UserError(self._describe_non_finite(values, batch))
        self.grad_scaler.scale(torch.stack(list(losses.values())).sum()).backward()

    def _check_and_clip(self, batch: Batch) -> None:
        self.grad_scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in weights])
        norm = float(total)
        get_event_storage().put_scalar("grad_norm", norm)
        if not math.isfinite(norm):
            # The scaler skips such a step and lowers its scale; at a scale of 1 the gradient itself is not finite.
            if not self.grad_scaler.is_enabled() or self.grad_scaler.get_scale() <= 1:
                raise UserError(self._describe_non_finite(f"the norm of the gradient is {norm}", batch))
        elif 0 < self.max_grad_norm < norm:
            nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, total)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.amp_dtype) if self.amp_dtype else nullcontext()

    def _describe_non_finite(self, what: str, batch: Batch) -> str:
        names = [str(record.get("file_name", "an image without file_name")) for record in batch]
        culprits = [name for name, record in zip(names, batch, strict=True) if not self._is_finite_alone(record)]
        if len(culprits) == len(names) > 1:
            blame = "; the loss of every single image is non-finite, so suspect the weights rather than an image"
        else:
            blame = f"; the loss is non-finite for these images alone: {', '.join(culprits)}" if culprits else ""
        return (
            f"The loss is not finite at iteration {self.iter} ({what}). "
            f"Images of this batch: {', '.join(names)}{blame}. "
            "No weight was changed; check these images and their annotations, lower SOLVER.BASE_LR or "
            "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM, then resume from the last checkpoint."
        )

    @torch.no_grad()
    def _is_finite_alone(self, record: dict[str, Any]) -> bool:
        try:
            with self._autocast():
                losses = unwrap(self.model)([record])
        except FloatingPointError:  # the RPN rejects non-finite boxes
            return False
        return bool(torch.isfinite(torch.stack(list(losses.values())).sum()))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the gradient scaler."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it is the state of another optimizer.
        """
        state = dict(state_dict)
        saved, own = state["optimizer"]["param_groups"], self.optimizer.param_groups
        if any(("betas" in old) != ("betas" in new) for old, new in zip(saved, own, strict=False)):
            raise ValueError("D2_MASKRCNN.SOLVER.OPTIMIZER was another optimizer, whose state cannot be used")
        state["optimizer"] = adapt_state(self.optimizer, state["optimizer"])
        scaler = state.pop("grad_scaler", None)
        super().load_state_dict(state)
        start_momenta(self.optimizer)
        check_optimizer(self.optimizer)
        if scaler:
            self.grad_scaler.load_state_dict(scaler)


def split_batch(batch: Batch, number: int) -> list[Batch]:
    """Split ``batch`` into at most ``number`` micro-batches, in order, whose sizes differ by one image at most."""
    number = min(number, len(batch))
    ends = [len(batch) * i // number for i in range(number + 1)]
    return [batch[ends[i] : ends[i + 1]] for i in range(number)]


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (on all devices) from (seed, iteration, rank).

    A resumed training then samples the same anchors and proposals as one that was never interrupted, without random
    states in the checkpoint.
    """
    words = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def choose_seed(configured: int) -> int:
    """Return ``configured`` (``cfg.SEED``), or a random seed below 2**31 if it is negative."""
    return configured if configured >= 0 else int(np.random.SeedSequence().generate_state(1)[0]) & 0x7FFFFFFF


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the dtype of the forward pass under ``SOLVER.AMP`` and ``D2_MASKRCNN.SOLVER.AMP_DTYPE``; None if off."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.D2_MASKRCNN.SOLVER.AMP_DTYPE
    if name == "auto":
        name = "float16" if str(cfg.MODEL.DEVICE).startswith("cuda") else "bfloat16"
    return torch.float16 if name == "float16" else torch.bfloat16
