"""Log what a training does, compare it with the one that it resumes, and apply the settings of the config.

Everything of the config applies to a resumed run, except the seed and the weights, which are the checkpoint's.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

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
_OWN_DATA = {"DATASETS.TRAIN": "D2_MASKRCNN.DATA.TRAIN_JSON", "DATASETS.TEST": "D2_MASKRCNN.DATA.VAL_JSON"}
_CHECKSUM = "checksum of the annotations of DATASETS.TRAIN, number "

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
    """Describe what a training depends on beside its config, to be stored in its checkpoints.

    Args:
        cfg: the config, with its datasets registered.
        num_images: size of the training set.
        num_processes: number of processes.

    Returns:
        A checksum of every annotation file of ``DATASETS.TRAIN``, and the numbers.
    """
    run = {}
    for index, name in enumerate(cfg.DATASETS.TRAIN):
        if (checksum := _checksum(MetadataCatalog.get(name).get("json_file"))) is not None:
            run[f"{_CHECKSUM}{index}"] = checksum
    run["number of training images"] = str(num_images)
    run["number of processes"] = str(num_processes)
    return run


def describe_config(text: str) -> dict[str, str]:
    """Return the value of every key of a config that the course of a training depends on.

    Args:
        text: the config as YAML. The names of datasets that it gives as files are left out; the files are compared.

    Raises:
        yaml.YAMLError: it is not YAML.
    """
    values = dict(_flatten(yaml.safe_load(text) or {}))
    own = [key for key, json_key in _OWN_DATA.items() if values.get(json_key)]
    return {key: repr(value) for key, value in values.items() if key not in (*_IRRELEVANT, *own)}


def describe_checkpoint(metadata: Mapping[str, Any], run: Any) -> dict[str, str] | None:
    """Describe the training that wrote a checkpoint as :func:`describe_config` and :func:`describe_run` do.

    Args:
        metadata: the checkpoint's metadata, with its config.
        run: what :func:`describe_run` returned for it.

    Returns:
        None for a checkpoint that does not contain its config, or a damaged one.
    """
    config = metadata.get("config")
    try:
        settings = describe_config(config) if isinstance(config, str) else {}
    except (yaml.YAMLError, AttributeError, ValueError):
        return None
    facts = {str(key): str(value) for key, value in run.items()} if isinstance(run, Mapping) else {}
    return {**settings, **facts} if settings else None


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


def log_changes(before: Mapping[str, str] | None, now: Mapping[str, str]) -> None:
    """Log each difference between the run that wrote a checkpoint and the run that resumes it, and which one is used.

    Args:
        before: see :func:`describe_checkpoint`.
        now: the same of this run.
    """
    if before is None:
        logger.warning("The checkpoint contains no readable config: that of this run is applied, except the seed.")
        return
    for key in sorted({*before, *now}):
        old, new = (one_line(run.get(key, "not set"))[:200] for run in (before, now))
        if old != new:
            effect = _KEPT.get(key) or _APPLIED.get(key, "applied")
            logger.warning("Resuming with another config: %s was %s, is now %s: %s", key, old, new, effect)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the settings (learning rate, momentum, weight decay, ...) of each parameter group."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def apply_hyperparameters(
    optimizer: torch.optim.Optimizer, scheduler: Any, configured: list[dict[str, Any]], finished: int
) -> None:
    """Replace the settings that an optimizer and its schedule loaded from a checkpoint by those of the config.

    Args:
        optimizer: with loaded state.
        scheduler: with loaded state. Other schedules than Detectron2's ``LRMultiplier`` continue with the checkpoint's
            learning rates.
        configured: what :func:`hyperparameters` returned before the state was loaded.
        finished: number of finished iterations, which determines the learning rates; a checkpoint may lack the
            schedule's own count.
    """
    is_multiplier = isinstance(scheduler, LRMultiplier)
    kept = () if is_multiplier else ("lr", "initial_lr")
    for group, settings in zip(optimizer.param_groups, configured, strict=True):
        group.update({key: value for key, value in settings.items() if key not in kept})
    if is_multiplier:
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        scheduler.last_epoch = finished
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
