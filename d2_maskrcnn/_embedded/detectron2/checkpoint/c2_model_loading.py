"""Match the tensors of a weight file with those of a model."""

import logging
import os
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)

_WRAPPED = "module."  # prefix of all names of a model in DataParallel or DistributedDataParallel


def align_and_update_state_dicts(
    model_state_dict: Mapping[str, Any], ckpt_state_dict: Mapping[str, Any], c2_conversion: bool = True
) -> dict[str, Any]:
    """Rename the tensors of a file to a model's names, for weights of a part of the model or of another program.

    A tensor matches the model's tensor whose name ends with the tensor's own name after a dot: ``res2.0.conv1.weight``
    matches ``backbone.bottom_up.res2.0.conv1.weight``. If several names of the file match, the longest is taken.

    Args:
        model_state_dict: of the model.
        ckpt_state_dict: of the file, tensors or arrays; not modified.
        c2_conversion: whether names of Caffe2's and torchvision's ResNets are converted before.

    Returns:
        The tensors under the model's names; those without a match, or with another shape, keep their name.

    Raises:
        ValueError: a tensor of the file matches several tensors of the model.
    """
    if model_state_dict and all(name.startswith(_WRAPPED) for name in model_state_dict):
        bare = {name.removeprefix(_WRAPPED): value for name, value in model_state_dict.items()}
        aligned = align_and_update_state_dicts(bare, ckpt_state_dict, c2_conversion)
        return {f"{_WRAPPED}{name}" if name in bare else name: value for name, value in aligned.items()}
    if c2_conversion:
        # In the function: importing any module of the plugin first imports its models, which import this engine.
        from d2_maskrcnn.weights import convert_names

        ckpt_state_dict = convert_names(ckpt_state_dict, model_state_dict).state
    renames = _match(model_state_dict, ckpt_state_dict)
    for old, new in renames.items():
        if old != new:
            logger.debug("Weight %s of the file matches %s of the model", old, new)
    return {renames.get(name, name): value for name, value in ckpt_state_dict.items()}


def _match(model: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return {name in the file: name in the model} of tensors with equal shapes."""
    matches: dict[str, str] = {}
    for name in model:
        found = next((suffix for suffix in _suffixes(name) if suffix in checkpoint), None)
        if found is None:
            continue
        if tuple(model[name].shape) != tuple(checkpoint[found].shape):
            logger.warning(
                "%s has shape %s in the file, but %s in the model (%s): not loaded",
                found,
                tuple(checkpoint[found].shape),
                tuple(model[name].shape),
                name,
            )
        elif found in matches:
            raise ValueError(f"weight {found!r} of the file matches both {matches[found]!r} and {name!r} of the model")
        else:
            matches[found] = name
    return matches


def _longest_common_prefix_str(names: list[str]) -> str:
    return os.path.commonprefix(names)  # noqa: RUF071 - of names, not of paths


def _suffixes(name: str) -> list[str]:
    """Return ``a.b.c``, ``b.c`` and ``c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
