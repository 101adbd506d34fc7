"""Reads weight files. What a file is, is decided by its first bytes; its name is only used in messages."""

import copy
import importlib
import importlib.util
import io
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.safe_pickle import load_pickle, named_imports, scan_pickle

EXPECTED = "a .pth file of torch.save, a .pkl of the model zoo, or .safetensors"
# Where other programs keep the state dict in their checkpoints.
_MODEL_KEYS = ("model", "state_dict", "model_state_dict", "model_state")
# How torch.save began its files before they were zip archives: a pickled magic number.
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NOT_WEIGHTS = (
    (b"<", "a web page or XML (a download link that led to a page?)"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (b"{", "JSON text"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file (Keras?)"),
)


def file_kind(path: str | os.PathLike[str]) -> str:
    """What a file is: ``"torch_zip"``, ``"torch_legacy"``, ``"pickle"`` or ``"safetensors"``.

    Raises:
        UserError: there is no such file, it is empty, or it is something else (the message says what).
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a weight file: name the file in it ({EXPECTED}).")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise UserError(
            f"No weight file at {path}: check MODEL.WEIGHTS (expected {EXPECTED}).{_nearby(path)}"
        ) from None
    except OSError as error:
        raise UserError(f"Cannot read the weight file {path}: {error.strerror}: check its permissions.") from error
    kind = _kind_of(head)
    if kind is None and head and path.suffix in (".pkl", ".pickle") and not _named_kind(head):
        return "pickle"  # an unusual beginning: its reader says what it asks for
    if kind is None:
        raise UserError(f"{path} is not a weight file: it is {_describe(head)}; expected {EXPECTED}.")
    return kind


def _kind_of(head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        return "torch_zip"
    if head.startswith(b"\x80") and _TORCH_LEGACY in head[:32]:
        return "torch_legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    # Protocol 2 and later say so; Python 2's protocols 0 and 1 begin with a dict.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head.startswith((b"(dp", b"(d", b"}q", b"}(")):
        return "pickle"
    return None


def _describe(head: bytes) -> str:
    if not head:
        return "empty"
    return _named_kind(head) or f"of no known kind (it begins with {head[:12]!r})"


def _named_kind(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for magic, name in _NOT_WEIGHTS if text.startswith(magic)), None)


def _nearby(path: Path) -> str:
    """Weight files beside the one that is missing."""
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".pth", ".pt", ".pkl", ".safetensors"))
    return f" In that folder there are: {', '.join(names[:5])}." if names else ""


def check_whole(path: str | os.PathLike[str]) -> None:
    """Checks that a weight file is whole, without loading it: its kind, a zip archive's checksums, a pickle's end.

    Raises:
        UserError: it is not; the message says what was found.
    """
    kind = file_kind(path)
    if kind == "torch_zip":
        _check_zip(Path(path))
    elif kind == "pickle":
        try:
            scan_pickle(path)
        except ValueError as error:
            raise _broken(Path(path), str(error)) from error


def _broken(path: Path, reason: str) -> UserError:
    size = path.stat().st_size
    reason = " ".join(reason.split())[:160]
    return UserError(f"{path} is truncated or damaged ({size} bytes; {reason}): copy or download it again.")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, zlib.error) as error:
        raise _broken(path, str(error)) from error
    if bad is not None:
        raise _broken(path, f"wrong checksum of {bad}")
    if "data.pkl" not in names or "constants.pkl" in names:
        what = "a TorchScript program" if "constants.pkl" in names else "a zip archive of other files"
        raise UserError(f"{path} is not a weight file: it is {what}; expected {EXPECTED}.")


def _read_torch_zip(path: Path) -> Any:
    # Checksums first: memory mapping, which keeps a large file out of memory until its tensors are copied, skips them.
    _check_zip(path)
    return _own_memory(_torch_load(path, mmap=True))


def _torch_load(path: Path, mmap: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _refused_or_broken(path, str(error)) from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        raise _broken(path, str(error)) from error


def _refused_or_broken(path: Path, message: str) -> UserError:
    blocked = re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", message)
    if "Unsupported operand" in message and not blocked:  # an opcode of a later protocol than torch.save's
        blocked = [name for name in _torch_imports(path) if not name.startswith(("torch.", "collections."))]
        if not blocked:
            return UserError(
                f"{path}: refused, nothing in it was run: it was written with a pickle protocol that tensors-only "
                "loading does not know: save it again with torch.save and its default pickle_protocol."
            )
    if not blocked:
        return _broken(path, message)
    return UserError(
        f"{path}: refused, nothing in it was run: it tries to import {blocked[0]!r:.120}, but a weight file may hold "
        "only tensors and plain containers: save the model's state_dict() with torch.save."
    )


def _torch_imports(path: Path) -> list[str]:
    """What the main pickle of a torch.save file would import; the old format has three small ones before it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                return named_imports(io.BytesIO(archive.read(name)))
        with path.open("rb") as file:
            return [name for _ in range(4) for name in named_imports(file)]
    except ValueError:
        return []


def _own_memory(checkpoint: Any) -> Any:
    """Copies the tensors outside "model": what an optimizer keeps must not hang on the (perhaps later removed) file."""
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), Mapping):
        return checkpoint
    return {key: value if key == "model" else _clone_tensors(value) for key, value in checkpoint.items()}


def _clone_tensors(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        clone = copy.copy(value)  # keeps the kind of dict and its attributes (torch's ``_metadata``)
        clone.update((key, _clone_tensors(item)) for key, item in value.items())
        return clone
    if type(value) in (list, tuple):
        return type(value)(_clone_tensors(item) for item in value)
    return value


def _read_safetensors(path: Path) -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path} is a safetensors file, which needs a package: `pip install safetensors`.")
    safetensors = importlib.import_module("safetensors")
    loader = importlib.import_module("safetensors.torch")
    try:
        return loader.load_file(str(path))
    except safetensors.SafetensorError as error:
        raise _broken(path, str(error)) from error


_READERS: dict[str, Callable[[Path], Any]] = {
    "torch_zip": _read_torch_zip,
    "torch_legacy": lambda path: _torch_load(path, mmap=False),
    "pickle": load_pickle,
    "safetensors": _read_safetensors,
}


def read_weights(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a weight file or checkpoint; nothing in it is run.

    Args:
        path: a local file: ``.pth`` (torch.save), ``.pkl`` (the model zoo's, or Caffe2 blobs), or ``.safetensors``.

    Returns:
        ``{"model": {name: tensor or array}, ...}``, all on the CPU, names as in the file. A checkpoint's further
        states (optimizer, iteration, ...) stay beside "model"; Caffe2 blobs get ``"__author__": "Caffe2"`` and
        ``"matching_heuristics": True``.

    Raises:
        UserError: the file is missing, empty, truncated, of another kind, holds no weights, or asks to import
        something.
    """
    path = Path(path)
    kind = file_kind(path)
    return _with_model(path, _READERS[kind](path), kind)


def _with_model(path: Path, data: Any, kind: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(
            f"{path} holds a {type(data).__name__}, not weights: expected a dict of named tensors ({EXPECTED})."
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
    _check_tensors(path, checkpoint["model"])
    return checkpoint


def _only_arrays(blobs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: blob for name, blob in blobs.items() if isinstance(blob, np.ndarray)}


def _check_tensors(path: Path, state: Mapping[str, Any]) -> None:
    if not state:
        raise UserError(f"{path} holds no weights: its dict of tensors is empty; expected {EXPECTED}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | np.ndarray):
            raise UserError(
                f"{path} holds no weights: {name!r:.60} is a {type(value).__name__}, not a tensor (keys: "
                f"{', '.join(map(str, list(state)[:6]))}); expected {EXPECTED}."
            )
