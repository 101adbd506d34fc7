"""Log what a training does, compare it with the one that it resumes, and apply the settings of the config.

Everything of the config applies to a resumed run, except the seed and the weights, which are the checkpoint's.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.errors import one_line
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.solver import LRMultiplier

_KEPT = {
    "SEED": "the checkpoint's seed is kept; a new training would use another",
    "MODEL.WEIGHTS": "not used, the checkpoint's weights are kept",
}
_APPLIED = {
    "SOLVER.IMS_PER_BATCH": "applied; the order of the images changes",
    "number of processes": "applied; anchors and proposals are sampled differently",
}
_IRRELEVANT = ("OUTPUT_DIR", "VERSION", "DATALOADER.NUM_WORKERS")

logger = logging.getLogger(__name__)


def log_start(start_iter: int, max_iter: int, seed: int) -> None:
    """Log which iterations are going to be trained, or that none are left."""
    if start_iter < max_iter:
        logger.info("Training iterations %d to %d with seed %d", start_iter, max_iter - 1, seed)
        return
    logger.warning(
        "This training is finished: the checkpoint was saved after %d iterations, so SOLVER.MAX_ITER %d is reached. "
        "Raise SOLVER.MAX_ITER to continue it.",
        start_iter,
        max_iter,
    )


def write_config(cfg: CfgNode, seed: int, is_new: bool) -> None:
    """Write the config in force, with the seed in use, to ``OUTPUT_DIR/config.yaml``.

    Args:
        cfg: the config, with scaled learning rate.
        seed: chosen, or taken from the checkpoint.
        is_new: whether the training starts at iteration 0; records of an earlier training are announced then.
    """
    folder = Path(cfg.OUTPUT_DIR)
    records = folder / "metrics.json"
    if is_new and records.is_file() and records.stat().st_size:
        logger.warning("%s contains records of an earlier training; new ones are appended.", records)
    in_force = cfg.clone()
    in_force.defrost()
    in_force.SEED = seed
    atomic_write_text(folder / "config.yaml", in_force.dump())


def describe_run(cfg: CfgNode, num_images: int, num_processes: int) -> dict[str, str]:
    """Describe what a training depends on, to be stored in its checkpoints.

    Args:
        cfg: the config, with its datasets registered.
        num_images: size of the training set.
        num_processes: number of processes.

    Returns:
        The value of every config key, a checksum of every annotation file of ``DATASETS.TRAIN``, and the numbers.
    """
    run = {key: repr(value) for key, value in _flatten(cfg) if key not in _IRRELEVANT}
    for name in cfg.DATASETS.TRAIN:
        if (checksum := _checksum(MetadataCatalog.get(name).get("json_file"))) is not None:
            run[f"checksum of the annotations of {name}"] = checksum
    run["number of training images"] = str(num_images)
    run["number of processes"] = str(num_processes)
    return run


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _checksum(path: Any) -> str | None:
    if not path or not Path(path).is_file():
        return None
    checksum = 0
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def log_changes(before: Any, now: Mapping[str, str]) -> None:
    """Log each difference between the run that wrote a checkpoint and the run that resumes it, and which one is used.

    Args:
        before: what :func:`describe_run` returned for the checkpoint; None for a checkpoint that does not contain it.
        now: what it returns for this run.
    """
    if not isinstance(before, Mapping):
        logger.warning("The checkpoint does not contain its config: that of this run is applied, except the seed.")
        return
    for key in sorted({*map(str, before), *now}):
        old, new = (one_line(run.get(key, "not set"))[:200] for run in (before, now))
        if old != new:
            effect = _KEPT.get(key) or _APPLIED.get(key, "applied")
            logger.warning("Resuming with another config: %s was %s, is now %s: %s", key, old, new, effect)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings (learning rate, momentum, weight decay, ...) of each parameter group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def apply_hyperparameters(optimizer: torch.optim.Optimizer, scheduler: Any, configured: list[dict[str, Any]]) -> None:
    """Replace the settings that an optimizer and its schedule loaded from a checkpoint by those of the config.

    Args:
        optimizer: with loaded state.
        scheduler: with loaded state; its last iteration determines the learning rates. Other schedules than
            Detectron2's ``LRMultiplier`` continue with the checkpoint's learning rates.
        configured: what :func:`hyperparameters` returned before the state was loaded.
    """
    is_multiplier = isinstance(scheduler, LRMultiplier)
    kept = () if is_multiplier else ("lr", "initial_lr")
    for group, settings in zip(optimizer.param_groups, configured, strict=True):
        group.update({key: value for key, value in settings.items() if key not in kept})
    if is_multiplier:
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
