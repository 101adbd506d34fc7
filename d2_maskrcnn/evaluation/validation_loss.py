"""What happens every ``TEST.EVAL_PERIOD`` iterations: COCO's measure and the losses on the test sets."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper, build_checked_test_loader
from d2_maskrcnn.distributed import unwrap
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def validation_losses(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """The losses on ``DATASETS.TEST`` in evaluation mode, each the mean over images.

    Images are resized as in testing, nothing is drawn at random but the anchors and proposals that enter the losses,
    which are the same each time. Each image is a batch of its own, so the result does not depend on the number of
    processes. Every process must call it.

    Args:
        cfg: names the datasets and the size of images.
        model: has ``losses(batched_inputs)``; may be wrapped in DistributedDataParallel.

    Returns:
        ``loss_cls``, ..., and ``total_loss``; with several datasets ``<dataset>/loss_cls`` and so on. Nothing for a
        dataset without annotations, and for a model of another kind, which has no losses in evaluation mode.
    """
    names = list(cfg.DATASETS.TEST)
    results: dict[str, float] = {}
    if not hasattr(unwrap(model), "losses"):
        logger.warning("No validation losses: %s has no method 'losses'", type(unwrap(model)).__name__)
        return results
    for name in names:
        found = _losses_on(cfg, unwrap(model), name)
        prefix = "" if len(names) == 1 else f"{name}/"
        results.update({prefix + key: value for key, value in found.items()})
    return results


@torch.no_grad()
def _losses_on(cfg: CfgNode, model: Any, dataset_name: str) -> dict[str, float]:
    if not any(record.get("annotations") for record in DatasetCatalog.get(dataset_name)):
        logger.info("No validation losses on %s: it has no annotations", dataset_name)
        return {}
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    mapper = MaskRCNNMapper(cfg, is_train=True, augmentations=[resize], recompute_boxes=False)
    rows: list[torch.Tensor] = []  # one (L,) for each image
    keys: list[str] = []
    with inference_context(model), torch.random.fork_rng(devices=[]):  # DataLoader draws a seed of its own
        for batch in build_checked_test_loader(cfg, dataset_name, mapper):
            losses = model.losses(batch)
            keys = list(losses)
            rows.append(torch.stack([losses[key].double() for key in keys]))
    mine = torch.stack(rows).sum(0).tolist() if rows else []
    gathered = comm.all_gather((keys, len(rows), mine))
    keys = next((of_rank for of_rank, _, _ in gathered if of_rank), [])
    count = sum(number for _, number, _ in gathered)
    sums = [sum(values[i] for _, _, values in gathered if values) for i in range(len(keys))]
    means = {key: value / count for key, value in zip(keys, sums, strict=True)}
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
