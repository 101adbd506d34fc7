"""Compute the losses on the test sets."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper, build_checked_test_loader, dataset_records
from d2_maskrcnn.distributed import unwrap
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def validation_losses(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """Compute the losses on ``DATASETS.TEST`` in evaluation mode, as means over images.

    Images are resized as for testing and not augmented; the anchors and proposals that are sampled for the losses are
    the same in each call. Each image is a batch of its own, so that the result does not depend on the number of
    processes. Every process must call it.

    Args:
        cfg: names the datasets and the image size.
        model: has ``losses(batched_inputs)``; may be wrapped in DistributedDataParallel.

    Returns:
        ``loss_cls``, ..., and ``total_loss``, each with the prefix ``<dataset>/`` if there are several datasets. Empty
        for a model without ``losses``; a dataset without annotations is left out.
    """
    names = list(cfg.DATASETS.TEST)
    results: dict[str, float] = {}
    if not hasattr(unwrap(model), "losses"):
        logger.warning("No validation losses: %s has no method 'losses'", type(unwrap(model)).__name__)
        return results
    for name in names:
        prefix = "" if len(names) == 1 else f"{name}/"
        results.update({prefix + loss: value for loss, value in _losses_on(cfg, unwrap(model), name).items()})
    return results


@torch.no_grad()
def _losses_on(cfg: CfgNode, model: Any, dataset_name: str) -> dict[str, float]:
    records = dataset_records(dataset_name)
    if not any(records[i].get("annotations") for i in range(len(records))):
        logger.info("No validation losses on %s: it has no annotations", dataset_name)
        return {}
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = MaskRCNNMapper(cfg, is_train=True, augmentations=[resize], recompute_boxes=False)
    names: list[str] = []
    rows: list[torch.Tensor] = []  # (L,) losses of each image
    with inference_context(model), torch.random.fork_rng(devices=[]):  # DataLoader draws a seed from the generator
        for batch in build_checked_test_loader(cfg, dataset_name, mapper):
            losses = model.losses(batch)
            names = list(losses)
            rows.append(torch.stack([losses[name].double() for name in names]))
    sums = torch.stack(rows).sum(0).tolist() if rows else []
    by_process = comm.all_gather((names, len(rows), sums))  # a process without images has no names
    names = next((names for names, _, _ in by_process if names), [])
    count = sum(count for _, count, _ in by_process)
    means = {name: sum(sums[i] for _, _, sums in by_process if sums) / count for i, name in enumerate(names)}
    return {**means, "total_loss": sum(means.values())} if means else {}


class Evaluate(HookBase):
    """Calls a function every ``TEST.EVAL_PERIOD`` iterations and in the last one, and puts what it returns into the
    storage.

    Unlike Detectron2's ``EvalHook``, the last evaluation comes within the last iteration: whatever follows from it
    (best model, patience) is known before ``model_final`` is saved. It belongs in front of the hooks that save.

    Args:
        function: returns a nested dict of numbers; called by every process, and must return numbers in the main one.
    """

    trainer: Any

    def __init__(self, function: Callable[[], Mapping[str, Any]]) -> None:
        self.function = function

    def after_step(self) -> None:
        """Evaluates if it is time."""
        if evaluation_is_due(self.trainer):
            self._evaluate()

    def after_train(self) -> None:
        """A finished training that was started again is evaluated again."""
        if self.trainer.iter >= self.trainer.max_iter and self.trainer.iter == self.trainer.start_iter:
            self._evaluate()

    def _evaluate(self) -> None:
        results = flatten_results_dict(dict(self.function()))
        for name, value in results.items():
            self.trainer.storage.put_scalar(name, float(value), smoothing_hint=False)
        comm.synchronize()


def evaluation_is_due(trainer: Any) -> bool:
    """Whether an evaluation comes in the present iteration: every ``TEST.EVAL_PERIOD``, and in the last one."""
    done, period = trainer.iter + 1, trainer.cfg.TEST.EVAL_PERIOD
    return done == trainer.max_iter or (period > 0 and done % period == 0)


def shared_metric(trainer: Any, name: str) -> tuple[float, int] | None:
    """The latest value of a metric and its iteration, as the main process has them; every process must call it."""
    found = trainer.storage.latest().get(name) if comm.is_main_process() else None
    return comm.all_gather(found)[0]
