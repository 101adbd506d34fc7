"""Find the checkpoint to resume from, check the training state in it, read its metadata, and copy its weights."""

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import make_folder
from d2_maskrcnn.weights.download import fetch_weights
from d2_maskrcnn.weights.formats import check_whole
from d2_maskrcnn.weights.readers import read_weights
from d2_maskrcnn.weights.safetensors_files import write_safetensors

LAST_CHECKPOINT = "last_checkpoint"
_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD and AdamW, shaped as their parameter
_PERIODIC = re.compile(r"model_(\d+|final)\.pth")  # names that training writes; other weights may be in the folder
_MAX_NAME = 255  # bytes, of a file name

logger = logging.getLogger(__name__)


def find_checkpoints(folder: str | Path) -> list[str]:
    """Return the checkpoints to resume from, best first: the one named in ``last_checkpoint``, then newest first.

    A symbolic link is followed, also out of the folder. Saving replaces the link, never the file behind it.
    """
    folder = Path(folder or ".")
    others = [path for path in folder.glob("model_*.pth") if _PERIODIC.fullmatch(path.name) and path.is_file()]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    names = dict.fromkeys([*_read_tag(folder / LAST_CHECKPOINT), *(path.name for path in newest_first)])
    return [str(folder / name) for name in names]


def existing_training(folder: str | Path) -> str | None:
    """Return a checkpoint of the training in ``folder``; None if it contains none."""
    return next((path for path in find_checkpoints(folder) if Path(path).is_file()), None)


def _read_tag(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        name = file.read(_MAX_NAME + 1).decode(errors="replace").strip()
    if name and (len(name) > _MAX_NAME or not name.isprintable() or name in (".", "..") or set(name) & set("/\\")):
        logger.warning("%s is ignored: expected the name of a checkpoint in the same folder, got %.80r", path, name)
        return []
    return [name] if name else []


def newest_whole(folder: str | Path) -> str:
    """Return the first of :func:`find_checkpoints` that is complete, with a warning about those that are not.

    Checkpoints are replaced atomically, so a damaged one comes from elsewhere: an interrupted copy, a faulty disk.

    Raises:
        UserError: there is none.
    """
    reason = "there is none"
    for count, path in enumerate(find_checkpoints(folder)):
        try:
            check_whole(path)
        except UserError as error:
            reason = str(error).rstrip(".")
            logger.warning("Not resuming from a checkpoint: %s", error)
            continue
        if count:
            logger.warning("Going back to an older checkpoint, which is complete: %s", path)
        return path
    raise UserError(
        f"No checkpoint in OUTPUT_DIR {folder} can be read ({reason}): start a new training in another OUTPUT_DIR."
    )


def stored_metadata(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a checkpoint (config, classes, versions, ...); empty if it has none."""
    metadata = checkpoint.get("metadata")
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def stored_class_names(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names in a checkpoint's metadata; empty if there are none or they are not a list of text."""
    names = stored_metadata(checkpoint).get("thing_classes")
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if is_list else []  # type: ignore[arg-type]


def stored_category_ids(checkpoint: Mapping[str, Any]) -> list[int]:
    """Return the category id of each class in a checkpoint's metadata; empty if they are not different integers."""
    ids = stored_metadata(checkpoint).get("category_ids")
    if not isinstance(ids, list | tuple) or not all(type(number) is int for number in ids):
        return []
    return list(ids) if len(set(ids)) == len(ids) else []


def stored_metrics(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of the last evaluation in a checkpoint's metadata, without values that are not finite."""
    metrics = stored_metadata(checkpoint).get("metrics")
    items = metrics.items() if isinstance(metrics, Mapping) else ()
    return {str(name): value for name, value in items if type(value) in (int, float) and math.isfinite(value)}


def check_training_state(path: str, checkpoint: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check the training state of a checkpoint before anything is resumed from it.

    Args:
        path: the file, for messages.
        checkpoint: its content, see :func:`~d2_maskrcnn.weights.readers.read_weights`.
        shapes: shape of every tensor of the model.

    Raises:
        UserError: an iteration, seed, optimizer or averaged weight is missing, of a wrong type or not finite.
    """
    problem = next(_problems(checkpoint, shapes), None)
    if problem is not None:
        raise UserError(
            f"Cannot resume from {path}: {problem}. Start a new training in another OUTPUT_DIR, or use the file as "
            "MODEL.WEIGHTS of one."
        )


def _problems(checkpoint: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    trainer = checkpoint.get("trainer", {})
    if not isinstance(trainer, Mapping):
        yield f"its state 'trainer' is a {type(trainer).__name__}"
        return
    inner = trainer.get("_trainer", {})
    if not isinstance(inner, Mapping):
        yield f"its state 'trainer._trainer' is a {type(inner).__name__}"
        return
    states = {"": checkpoint, "trainer.": trainer, "trainer._trainer.": inner}
    for prefix, state in states.items():
        yield from _bad_integers(prefix, state)
    for prefix, state in states.items():
        if "optimizer" in state:
            yield from _bad_optimizer(f"{prefix}optimizer", state["optimizer"])
    yield from _bad_average(checkpoint.get("ema"), shapes)


def _bad_integers(prefix: str, state: Mapping[str, Any]) -> Iterator[str]:
    for key in ("iteration", "seed", "initial_seed"):
        value = state.get(key)
        if value is None and (key == "initial_seed" or key not in state):
            continue
        if type(value) is not int or not 0 <= value < 2**63:
            yield f"its {prefix}{key} is {value!r:.60}, expected an integer from 0"


def _bad_optimizer(name: str, state: Any) -> Iterator[str]:
    groups, moments = (state.get("param_groups"), state.get("state")) if isinstance(state, Mapping) else (None, None)
    if not isinstance(groups, list) or not all(isinstance(g, Mapping) for g in groups) or not isinstance(moments, dict):
        yield f"its {name} is not the state of an optimizer"
        return
    for group in groups:
        for key in ("lr", "initial_lr", "momentum", "weight_decay", "eps"):
            value = group.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                yield f"its {name} has {key} {value!r:.60}, expected a number from 0"
        if not moments and (group.get("momentum") or "betas" in group):
            yield f"its {name} has no state, although it has momentum: the file was cut or written by another program"
    states = [moment.values() if isinstance(moment, Mapping) else [moment] for moment in moments.values()]
    if not all(map(_is_finite, chain.from_iterable(states))):
        yield f"its {name} contains numbers that are not finite"


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _bad_average(state: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    values = state.get("values") if isinstance(state, Mapping) else None
    if state is not None and not isinstance(values, Mapping):
        yield "its averaged weights (ema) are not a state dict"
    for name, value in (values or {}).items() if isinstance(values, Mapping) else ():
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != shapes.get(name):
            yield f"its averaged weight {name} is not a tensor of the model's shape {shapes.get(name)}"
        elif not _is_finite(value):
            yield f"its averaged weight {name} is not finite"


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Check that the loaded state of an optimizer has the shapes of its parameters, which PyTorch does not.

    Raises:
        ValueError: it has not.
    """
    required = ("exp_avg", "exp_avg_sq", "step") if "betas" in optimizer.defaults else ()  # of AdamW
    for parameter, state in optimizer.state.items():
        if missing := [key for key in required if not isinstance(state.get(key), torch.Tensor)]:
            raise ValueError(f"a parameter has no {missing[0]}")
        for key, value in state.items():
            is_counter = key == "step" or (isinstance(value, torch.Tensor) and value.dim() == 0 and key not in _MOMENTS)
            if isinstance(value, torch.Tensor) and not is_counter and value.shape != parameter.shape:
                raise ValueError(f"{key} has shape {tuple(value.shape)}, its parameter {tuple(parameter.shape)}")


def save_weights(weights: str, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a checkpoint, with its metadata but without the training state, to a safetensors file.

    Args:
        weights: weight file or address in any format that can be read.
        path: the new file; its name ends with ``.safetensors``.

    Raises:
        UserError: ``weights`` cannot be read, the name has another ending, safetensors is not installed, or the file
            cannot be written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: expected a file name that ends with .safetensors.")
    checkpoint = read_weights(fetch_weights(weights), copy_states=())
    state = {name: torch.as_tensor(value) for name, value in checkpoint["model"].items()}
    write_safetensors(state, make_folder(target.parent) / target.name, stored_metadata(checkpoint))
