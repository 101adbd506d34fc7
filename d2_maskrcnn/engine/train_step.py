"""One training iteration: data, forward, check, backward, update."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.engine.normalisers import Counts, Part, part_weights, split_batch, weigh
from d2_maskrcnn.engine.randomness import image_seeds, seed_iteration
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.sampling import ImageSampling, sampling_by_image
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage


class TrainStep(SimpleTrainer):
    """Runs iterations that depend on (weights, optimiser, seed, iteration) alone, so that a resumed training is the
    same training.

    It differs from Detectron2's ``SimpleTrainer`` in these ways: randomness is seeded anew for each iteration and for
    each image; a loss that is not finite stops the training before it can spoil a weight and names its images;
    mixed precision, accumulation and clipping are switches instead of classes.

    Args:
        model: takes a list of dicts, returns a dict of scalar losses. Put in training mode.
        data_loader: gives lists of dicts, without end.
        optimizer: updates the model.
        seed: of the whole training, the same on all ranks.
        amp_dtype: dtype of the forward pass under autocast; None for float32 throughout.
        accumulate: parts that a batch is computed in, one after the other, to save memory. Loss and gradient are those
            of the whole batch, for images of one size (parts are padded to their own largest image) and without
            batch normalisation, whose statistics are each part's own.
        max_grad_norm: gradients are scaled down to this L2 norm over all weights; 0 leaves them alone. The norm is
            measured in any case.
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
        # Gradients of float16 underflow without scaling; those of bfloat16 and float32 have the exponents they need.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype == torch.float16)
        self._batches: Iterator[list[dict[str, Any]]] | None = None

    def run_step(self) -> None:
        """One iteration.

        Raises:
            UserError: a loss or a gradient is NaN or infinite; nothing has been updated.
        """
        start = time.perf_counter()
        batch = self._read_batch()
        data_time = time.perf_counter() - start

        seed_iteration(self.seed, self.iter, comm.get_rank())
        self.optimizer.zero_grad()
        parts = split_batch(batch, self.accumulate, image_seeds(self.seed, self.iter, comm.get_rank(), len(batch)))
        losses = self._backward_whole(parts[0]) if len(parts) == 1 else self._backward_in_parts(parts)
        self._write_metrics(losses, data_time)
        self._check_and_clip(batch)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward_whole(self, part: Part) -> dict[str, torch.Tensor]:
        with sampling_by_image(part.seeds) as sampling:
            losses = self._forward(part.images)
        if comm.get_world_size() > 1:
            losses = weigh(losses, part_weights([_counts(sampling)], self.device)[0])
        self._backward(losses, part.images)
        return losses

    def _backward_in_parts(self, parts: list[Part]) -> dict[str, torch.Tensor]:
        # The first part's samples are counted by its own forward pass; the others' must be known before its backward.
        others = [self._count_samples(part) for part in parts[1:]]
        sums: dict[str, torch.Tensor] = {}
        weights: list[torch.Tensor] = []
        for number, part in enumerate(parts):
            with self._synchronised_last(part is parts[-1]), sampling_by_image(part.seeds) as sampling:
                losses = self._forward(part.images)
                if number == 0:
                    weights = part_weights([self._own_counts(part, sampling), *others], self.device)
                losses = weigh(losses, weights[number])
                self._backward(losses, part.images)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
        return sums

    def _own_counts(self, part: Part, sampling: ImageSampling) -> Counts:
        return _counts(sampling) if self._counts_samples() else Counts(*[len(part.images)] * 3)

    def _counts_samples(self) -> bool:
        model = self._bare_model()
        return hasattr(model, "draw_samples") and not _has_batch_statistics(model)

    def _count_samples(self, part: Part) -> Counts:
        """What the part's losses will be divided by: its sampling is done once beforehand, without the heads.

        The gradients of parts are added up in the weights, so a part's share of the batch must be known before its
        backward pass. With batch normalisation the sum is not exact anyway, and this pass would disturb its
        statistics: then a part counts by its images.
        """
        if not self._counts_samples():
            return Counts(*[len(part.images)] * 3)
        with sampling_by_image(part.seeds) as sampling, self._autocast():
            self._try(lambda: self._bare_model().draw_samples(part.images), part.images)
        return _counts(sampling)

    def _synchronised_last(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self.model, nn.parallel.DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _backward(self, losses: dict[str, torch.Tensor], batch: list[dict[str, Any]]) -> None:
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            values = ", ".join(f"{name} = {float(loss.detach()):.4g}" for name, loss in losses.items())
            raise UserError(self._describe_non_finite(values, batch))
        self.grad_scaler.scale(total).backward()

    def _check_and_clip(self, batch: list[dict[str, Any]]) -> None:
        self.grad_scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in weights])
        norm = float(total)
        get_event_storage().put_scalar("grad_norm", norm)
        if not math.isfinite(norm):
            # A scaler leaves such a step out and scales less from then on; where it no longer scales, that is no cure.
            if not self.grad_scaler.is_enabled() or self.grad_scaler.get_scale() <= 1:
                raise UserError(self._describe_non_finite(f"the norm of the gradient is {norm}", batch))
        elif 0 < self.max_grad_norm < norm:
            nn.utils.clip_grads_with_norm_(weights, self.max_grad_norm, total)

    def _bare_model(self) -> Any:
        return self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model

    def _forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with self._autocast():
            return self._try(lambda: self.model(batch), batch)

    def _try(self, compute: Callable[[], Any], batch: list[dict[str, Any]]) -> Any:
        try:
            return compute()
        except FloatingPointError as error:  # the proposal stage refuses boxes that are not finite
            raise UserError(self._describe_non_finite(str(error).rstrip("."), batch)) from error

    def _read_batch(self) -> list[dict[str, Any]]:
        # Created at the first iteration, not before: by then a resumed training has told the loader where to start.
        if self._batches is None:
            self._batches = iter(self.data_loader)
        return next(self._batches)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.amp_dtype) if self.amp_dtype else nullcontext()

    def _describe_non_finite(self, what: str, batch: list[dict[str, Any]]) -> str:
        names = [str(record.get("file_name", "an image without file_name")) for record in batch]
        culprits = [name for name, record in zip(names, batch, strict=True) if not self._is_finite_alone(record)]
        if len(culprits) == len(names) > 1:
            blame = "; each of them gives such a loss alone, so look at the weights rather than at an image"
        else:
            blame = f"; alone, these give a loss that is not finite: {', '.join(culprits)}" if culprits else ""
        return (
            f"The loss is not finite at iteration {self.iter} ({what}). "
            f"Images of this batch: {', '.join(names)}{blame}. "
            "No weight was changed; look at these images and their annotations, lower SOLVER.BASE_LR or "
            "D2_MASKRCNN.SOLVER.MAX_GRAD_NORM, then go on from the last checkpoint with --resume."
        )

    def _is_finite_alone(self, record: dict[str, Any]) -> bool:
        model = self._bare_model()
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


def _counts(sampling: ImageSampling) -> Counts:
    return Counts(sampling.images, sampling.rois, sampling.foreground)


def _has_batch_statistics(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
