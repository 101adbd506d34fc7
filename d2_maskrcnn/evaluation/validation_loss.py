"""Compute the losses on the test sets."""

import logging
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper, build_checked_test_loader, dataset_records
from d2_maskrcnn.distributed import unwrap
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.evaluation import inference_context
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
