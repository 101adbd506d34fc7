"""Read and write safetensors files: weights alone, with the metadata of a checkpoint as text."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.errors import UserError, import_extra
from d2_maskrcnn.weights.atomic import atomic_write_bytes
from d2_maskrcnn.weights.formats import damaged

_TEXT = ("config", "d2_maskrcnn", "torch")  # entries of the metadata that are text; the others are stored as JSON
_JSON = ("engine", "thing_classes", "category_ids", "iteration", "metrics")


def write_safetensors(state: Mapping[str, torch.Tensor], path: str | os.PathLike[str], metadata: Any = None) -> None:
    """Write the weights of a model as a safetensors file, atomically.

    Args:
        state: the model's state dict.
        path: the file, in an existing folder.
        metadata: metadata of a checkpoint, see :meth:`MaskRCNNCheckpointer.metadata`; None for none. Entries that are
            not text are written as JSON.

    Raises:
        UserError: safetensors is not installed, or the file cannot be written.
    """
    save = import_extra("safetensors.torch", "safetensors").save
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    items = metadata.items() if isinstance(metadata, Mapping) else ()
    texts = {str(key): value if isinstance(value, str) else json.dumps(value) for key, value in items}
    atomic_write_bytes(path, save(tensors, {"format": "pt", **texts}))


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read a safetensors file.

    Returns:
        ``{"model": {name: tensor}, "metadata": ...}``, the metadata as it was given to :func:`write_safetensors`.

    Raises:
        UserError: safetensors is not installed, or the file is damaged.
    """
    load_file = import_extra("safetensors.torch", "safetensors").load_file
    safetensors = import_extra("safetensors", "safetensors")
    try:
        state = load_file(str(path))
        with safetensors.safe_open(str(path), "pt") as file:
            texts = file.metadata() or {}
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:  # KeyError: a dtype torch lacks
        raise damaged(path, error) from error
    metadata: dict[str, Any] = {key: texts[key] for key in _TEXT if key in texts}
    try:
        metadata |= {key: json.loads(texts[key]) for key in _JSON if key in texts}
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: the metadata is damaged ({error}); expected JSON in {', '.join(_JSON)}. Write the file again "
            "from its checkpoint."
        ) from error
    return {"model": state, "metadata": metadata} if metadata else {"model": state}
