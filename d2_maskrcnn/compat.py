"""The private attributes of Detectron2 that this package uses, each with the reason.

All other modules use Detectron2's public names only, so a change of these internals breaks this file alone.
``tests/test_compat.py`` runs on an installed Detectron2 and on the embedded engine.
"""

import gc
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
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
