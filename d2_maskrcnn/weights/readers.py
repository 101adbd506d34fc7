"""Read weight files and checkpoints exactly as they were written, or refuse them; nothing in them is run."""

import copy
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import EXPECTED, check_zip, damaged, file_kind
from d2_maskrcnn.weights.safe_pickle import load_pickle, scan_opcodes
from d2_maskrcnn.weights.safetensors_files import read_safetensors

# Where other programs store the state dict in their checkpoints.
_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "model_state")
# Bytes per element of each storage class that torch.save writes; UntypedStorage counts bytes.
_ITEM_SIZES = {
    f"{kind}Storage": size
    for size, kinds in {
        1: "Untyped Byte Char Bool QInt8 QUInt8 QUInt4x2 QUInt2x4",
        2: "Half BFloat16 Short",
        4: "Float Int QInt32",
        8: "Double Long ComplexFloat",
        16: "ComplexDouble",
    }.items()
    for kind in kinds.split()
}
MAX_DEPTH = 64  # nesting of containers in a checkpoint


def read_weights(path: str | os.PathLike[str], copy_states: Collection[str] | None = None) -> dict[str, Any]:
    """Read a weight file or checkpoint.

    The tensors of a ``.pth`` file are mapped from the file into memory, so unused ones take no memory.

    Args:
        path: a local file: ``.pth`` (torch.save), ``.pkl`` (the model zoo's, or Caffe2 blobs), or ``.safetensors``.
        copy_states: entries beside "model" whose tensors get memory of their own, independent of the file; None for
            all of them.

    Returns:
        ``{"model": {name: tensor or array}, ...}``, all on the CPU, names as in the file. A checkpoint's further
        states (optimizer, iteration, ...) are entries beside "model". Caffe2 blobs get ``"__author__": "Caffe2"`` and
        ``"matching_heuristics": True``.

    Raises:
        UserError: the file is missing, damaged, of another format, contains no weights or anything but dense tensors
            and plain containers, or tries to import something.
    """
    path = Path(path)
    kind = file_kind(path)
    content = _READERS[kind](path)
    _check_tensors(path, content)
    checkpoint = _with_model(path, content, kind)
    for key in checkpoint.keys() - {"model"}:
        if copy_states is None or key in copy_states:
            checkpoint[key] = copy.deepcopy(checkpoint[key])
    return checkpoint


def _read_torch_zip(path: Path) -> Any:
    sizes = check_zip(path)  # memory mapping does not check anything
    content = _torch_load(path, path, mmap=True)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        _check_storages(path, archive.read(name), sizes)
    return content


def _read_torch_legacy(path: Path) -> Any:
    # In memory: given a file, torch would first try an even older format, a tar archive, whatever the first bytes say.
    stream = io.BytesIO(path.read_bytes())
    content = _torch_load(path, stream, mmap=False)
    if stream.read(1):
        raise UserError(f"{path} is refused: something follows the weights in it; save it with torch.save.")
    return content


def _torch_load(path: Path, source: Any, mmap: bool) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refused_or_damaged(path, str(error)) from None
    except Exception as error:  # torch.load lets the pickle's own faults through, which can be of any type
        raise damaged(path, error or type(error).__name__) from error


def _refused_or_damaged(path: Path, message: str) -> UserError:
    blocked = re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", message)
    if not blocked and "Unsupported operand" not in message:
        return damaged(path, message)
    reason = f"it tries to import {blocked[0]!r:.120}" if blocked else "its pickle is not of torch.save's protocol"
    return UserError(
        f"{path}: refused, no code in it was run: {reason}, but a weight file may contain only tensors and plain "
        "containers. Save the model's state_dict() with torch.save."
    )


class _StorageFinder(pickle.Unpickler):
    """Find the storages that a ``data.pkl`` refers to, without loading any.

    Attributes:
        sizes: size in bytes that the pickle claims of each record.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _ITEM_SIZES[name] if name.endswith("Storage") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        _, itemsize, key, _, count = pid
        self.sizes[f"data/{key}"] = max(itemsize * count, self.sizes.get(f"data/{key}", 0))
        return _Inert()


class _Inert(dict):
    """Takes the place of every object in a pickle."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _check_storages(path: Path, pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Check that each storage has the size of its record; a larger one would be read from its neighbors."""
    finder = _StorageFinder(pickled)
    try:
        for _ in scan_opcodes(io.BytesIO(pickled)):
            pass
        finder.load()
    except Exception as error:  # a damaged pickle can raise anything
        raise damaged(path, error) from error
    for name, size in finder.sizes.items():
        if size != sizes.get(name):
            raise damaged(path, f"a tensor of {size} bytes in the record {name} of {sizes.get(name)} bytes")


_READERS: dict[str, Callable[[Path], Any]] = {
    "torch_zip": _read_torch_zip,
    "torch_legacy": _read_torch_legacy,
    "pickle": load_pickle,
    "safetensors": read_safetensors,
}


def _with_model(path: Path, data: Any, kind: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(
            f"{path} contains a {type(data).__name__}, not weights; expected a dict of named tensors ({EXPECTED})."
        )
    data = dict(data)
    checkpoint: dict[str, Any]
    if isinstance(data.get("blobs"), dict):
        checkpoint = {"model": _only_arrays(data["blobs"]), "__author__": "Caffe2", "matching_heuristics": True}
    elif (key := next((k for k in _MODEL_KEYS if isinstance(data.get(k), Mapping)), None)) is not None:
        checkpoint = {"model": dict(data.pop(key)), **data}
    elif kind == "pickle" and any(str(name).endswith("_w") for name in data):
        checkpoint = {"model": _only_arrays(data), "__author__": "Caffe2", "matching_heuristics": True}
    else:
        checkpoint = {"model": data}
    _check_state(path, checkpoint["model"])
    return checkpoint


def _only_arrays(blobs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: blob for name, blob in blobs.items() if isinstance(blob, np.ndarray)}


def _check_state(path: Path, state: Mapping[str, Any]) -> None:
    if not state:
        raise UserError(f"{path} contains no weights: its dict of tensors is empty; expected {EXPECTED}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
            what = f"is a {type(value).__name__}, not a tensor" if isinstance(name, str) else "is not a tensor's name"
            raise UserError(
                f"{path} contains no weights: {name!r:.60} {what} (keys: "
                f"{', '.join(map(str, list(state)[:6]))}); expected {EXPECTED}."
            )


def _check_tensors(path: Path, content: Any) -> None:
    """Refuse tensors that are not dense numbers in the file: sparse, quantized, without data, or expanded."""
    for name, tensor in _named_tensors(path, content, set()):
        problem = _problem_of(tensor)
        if problem:
            raise UserError(f"{path} is refused: the tensor {name} is {problem}; expected dense tensors.")


def _named_tensors(
    path: Path, value: Any, seen: set[int], name: str = "", depth: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if depth > MAX_DEPTH:
        raise UserError(f"{path} is refused: its containers are nested deeper than {MAX_DEPTH}.")
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _named_tensors(path, item, seen, f"{name}.{key}" if name else str(key), depth + 1)


def _problem_of(tensor: torch.Tensor) -> str:
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantized ({tensor.dtype})"
    if tensor.device.type != "cpu":
        return "without data" if tensor.is_meta else f"on the device {tensor.device}"
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f"of the class {type(tensor).__name__}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"expanded to the shape {tuple(tensor.shape)} from fewer elements"
    return ""
