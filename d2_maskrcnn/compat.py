"""The private attributes of Detectron2 that this package uses, each with the reason.

All other modules use Detectron2's public names only, so a change of these internals breaks this file alone.
``tests/test_compat.py`` runs on an installed Detectron2 and on the embedded engine.
"""

import contextlib
import gc
import io
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventStorage


def set_train_step(trainer: DefaultTrainer, step: SimpleTrainer) -> None:
    """Make ``step`` run the iterations of ``trainer``.

    ``DefaultTrainer`` builds its own step in ``__init__`` and delegates ``run_step``, ``model``, ``optimizer`` and its
    state to it; there is no method to replace it.
    """
    trainer._trainer = step


def train_step(trainer: DefaultTrainer) -> Any:
    """Return what :func:`set_train_step` set, or the step that ``DefaultTrainer`` built."""
    return trainer._trainer


def registered_hooks(trainer: TrainerBase) -> list[HookBase]:
    """Return the hooks of ``trainer`` in their order; ``register_hooks`` has no counterpart that reads them."""
    return trainer._hooks


def write_losses(step: SimpleTrainer, losses: Mapping[str, torch.Tensor], data_time: float) -> None:
    """Log the losses, averaged over processes, and the time in seconds that was spent waiting for data.

    The public ``SimpleTrainer.write_metrics`` takes different arguments in Detectron2 0.6 and in its main branch.
    """
    step._write_metrics(losses, data_time)


def pending_images(storage: EventStorage) -> list[tuple[str, Any, int]]:
    """Return (name, (3, H, W) image, iteration) of the images that no writer has written yet.

    ``EventStorage`` has ``put_image`` and ``clear_images``, but no method that reads them.
    """
    return storage._vis_data


def init_coco_evaluator(
    evaluator: COCOEvaluator, dataset_name: str, ground_truth: dict[str, Any], **options: Any
) -> None:
    """Initialize ``evaluator`` with ground truth in memory; if that has no annotations, it computes no metrics.

    ``COCOEvaluator.__init__`` takes the name of a dataset and reads its file itself, in the encoding of the locale; it
    has no argument for the content. It gets an empty file here.

    Args:
        evaluator: not initialized yet.
        dataset_name: a registered dataset, of which only the metadata is used.
        ground_truth: content of a COCO JSON.
        options: further arguments of ``COCOEvaluator``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "empty.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"images": [], "annotations": [], "categories": []}, file)
        MetadataCatalog.get(path).json_file = path
        COCOEvaluator.__init__(evaluator, path, **options)
        MetadataCatalog.remove(path)
    index = type(evaluator._coco_api)()
    index.dataset = ground_truth
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        index.createIndex()
    evaluator._coco_api = index
    evaluator._metadata = MetadataCatalog.get(dataset_name)
    evaluator._do_evaluation = bool(ground_truth["annotations"])


def ground_truth_of(evaluator: COCOEvaluator) -> dict[str, Any]:
    """Return the content of the COCO JSON that ``evaluator`` compares to; it has no public attribute."""
    return evaluator._coco_api.dataset


def destroy_process_groups() -> None:
    """Destroy the process groups of this process, with the threads that they run.

    ``detectron2.utils.comm`` keeps references to groups in its globals and caches. A gloo thread that outlives the
    interpreter with a tensor of the last exchange aborts the process.
    """
    dist.destroy_process_group()
    for name, value in list(vars(comm).items()):
        if isinstance(value, dist.ProcessGroup):
            setattr(comm, name, None)
        elif hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()  # models in DistributedDataParallel refer to groups, too, and are part of reference cycles
