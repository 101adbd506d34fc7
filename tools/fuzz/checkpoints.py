"""Weight files of all formats: bytes, archives, tensors, containers and code. What is loaded must equal the file."""

import importlib.util
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.weights.readers import read_weights
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage, odd_value

COUNT = 160
FORMATS = (
    "zip",
    "zip",
    "zip",
    "legacy",
    "pickle",
    *(["safetensors"] if importlib.util.find_spec("safetensors") else []),
)
NAME = "1.running_var"
State = dict[str, Any]


def prepare(folder: Path) -> None:
    """Do nothing: the inputs share no files."""


def build() -> nn.Module:
    """Return a small model with the kinds of tensors that a Mask R-CNN has."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6))
    return model.eval()


TENSORS: dict[str, tuple[Callable[[torch.Tensor], Any], bool]] = {  # change -> whether the file may be evaluated
    "half precision": (lambda t: t.half(), True),
    "double precision": (lambda t: t.double(), True),
    "not contiguous": (lambda t: torch.stack([t, t], dim=-1)[..., 0], True),
    "NaN": (lambda t: torch.full_like(t, float("nan")), False),
    "infinite": (lambda t: torch.full_like(t, float("inf")), False),
    "negative variance": (lambda t: -1 - t, False),
    "bool": (lambda t: t > 0, False),
    "integers": (lambda t: t.long(), False),
    "complex": (lambda t: t.to(torch.complex64), False),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), False),
    "sparse": (lambda t: t.to_sparse(), False),
    "meta": (lambda t: t.to("meta"), False),
    "quantized": (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), False),
    "expanded": (lambda t: t.flatten()[:1].clone().expand(t.shape), False),
    "another shape": (lambda t: torch.zeros(3, 7), False),
    "scalar": (lambda t: torch.tensor(1.0), False),
    "text": (lambda t: "abc", False),
    "list": (lambda t: t.tolist(), False),
    "None": (lambda t: None, False),
}


class Code:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Change a tensor, the containers, the archive or the bytes of a good file."""
    kind = rng.choice(FORMATS)
    suffix = {"pickle": ".pkl", "safetensors": ".safetensors"}.get(kind, ".pth")
    path, canary = folder / f"w{suffix}", folder / "canary"
    action = rng.choice(("tensor", "tensor", "container", "bytes", "bytes", "archive", "code", "intact"))
    content: Any = build().state_dict()
    label, evaluable = action, True
    if action == "tensor":
        label = rng.choice([name for name in TENSORS if kind == "zip" or TENSORS[name][1]])
        change, evaluable = TENSORS[label]
        content[NAME] = change(content[NAME])
    elif action == "container" and kind != "safetensors":
        label, content, evaluable = _container(rng, content)
    elif action == "code" and kind != "safetensors":
        content, evaluable = {"model": content, "x": Code(canary)}, False
    _write(path, kind, content)
    if action == "bytes":
        label, data = damage(rng, path.read_bytes())
        path.write_bytes(data)
    elif action == "archive" and kind == "zip":
        label, evaluable = _archive(rng, path), False
    return Input(f"{kind}: {label}", lambda: check(path, kind, evaluable, canary, action))


def _write(path: Path, kind: str, content: Any) -> None:
    if kind == "pickle":
        plain = content.get("model", content) if isinstance(content, dict) else content
        if isinstance(plain, dict):
            plain = {k: v.contiguous().numpy() if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
            content = {**content, "model": plain} if "model" in content else {"model": plain}
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in content.items()}, str(path))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


def _container(rng: random.Random, state: State) -> tuple[str, Any, bool]:
    deep: Any = []
    for _ in range(rng.choice((10, 200))):
        deep = [deep]
    self_containing: list[Any] = []
    self_containing.append(self_containing)
    value = odd_value(rng)
    choices: tuple[tuple[str, Any, bool], ...] = (
        ("empty", {}, False),
        ("not a dict", value, False),
        ("an empty model", {"model": {}}, False),
        ("a model that is a list", {"model": list(state.values())}, False),
        ("an odd model", {"model": value}, False),
        ("a number as name", {**state, 3: torch.zeros(2)}, False),
        ("nested containers", {"model": state, "x": deep}, True),
        ("a list in itself", {"model": state, "x": self_containing}, True),
        ("odd state", {"model": state, "iteration": value, "metadata": value, "optimizer": value}, True),
        ("odd class names", {"model": state, "metadata": {"thing_classes": value}}, True),
        ("half of the model", {"model": dict(list(state.items())[:4])}, False),
        ("other names", {"model": {f"x.{name}": tensor for name, tensor in state.items()}}, False),
    )
    return rng.choice(choices)


def _archive(rng: random.Random, path: Path) -> str:
    """Rewrite a zip archive in a way that torch.save does not."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    names = list(entries)
    label = rng.choice(
        ("compressed", "repeated", "comment", "another folder", "record swapped", "short record", "gone")
    )
    method = zipfile.ZIP_DEFLATED if label == "compressed" else zipfile.ZIP_STORED
    data = next(name for name in names if name.endswith("data/0"))
    if label == "short record":
        entries[data] = entries[data][:-4]
    elif label == "record swapped":  # with one of another size
        entries[data] = entries[next(name for name in names if name.endswith("data/1"))]
    elif label == "gone":
        del entries[data]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if label == "repeated":
            archive.writestr(data, bytes(len(entries[data])))
        elif label == "comment":
            archive.comment = b"more"
        elif label == "another folder":
            archive.writestr("other/data/0", b"1234")
    return f"archive {label}"


def check(path: Path, kind: str, evaluable: bool, canary: Path, action: str) -> None:
    """Load the file, and compare the model with an independent reading."""
    model = build()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    checkpointer = MaskRCNNCheckpointer(model)
    try:
        rest = checkpointer.load(str(path))
        checkpointer.check_evaluable()
    finally:
        expect(not canary.exists(), "code in the file was run")
    expect(evaluable or action == "bytes", "the file was accepted for an evaluation")
    expect("model" not in rest, "the model is returned")
    expected = _independent(path, kind) if action == "bytes" else _original(read_weights(path)["model"])
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked") and name not in expected:
            continue  # renamed by a changed byte; the model works without it
        given = torch.as_tensor(expected[name])
        expect(given.shape == value.shape and torch.equal(given.to(value.dtype), value), f"{name} differs")


def _original(read: State) -> State:
    """Return the tensors that were saved, rounded as they were saved."""
    original = build().state_dict()
    return {name: value.to(torch.as_tensor(read[name]).dtype) for name, value in original.items()}


def _independent(path: Path, kind: str) -> State:
    """Read a file whose bytes were changed without the package."""
    content = path.read_bytes()
    if kind == "safetensors":
        (length,) = struct.unpack("<Q", content[:8])
        header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
        types = {"F32": np.float32, "I64": np.int64}
        return {
            name: torch.from_numpy(
                np.frombuffer(body[slice(*each["data_offsets"])], types[each["dtype"]]).reshape(each["shape"]).copy()
            )
            for name, each in header.items()
            if name != "__metadata__"
        }
    if kind == "pickle":
        loaded = pickle.loads(content)
        return loaded["model"]
    return torch.load(io.BytesIO(content), weights_only=True)
