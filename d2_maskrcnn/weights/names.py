"""Convert the parameter names of a weight file to those of the model.

Three conventions are recognized: Detectron2's own names, the Caffe2 blobs of MSRA's ImageNet models, and torchvision's
ResNets of every depth. Torchvision's ImageNet weights expect ``INPUT.FORMAT: RGB``,
``MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53]``, ``MODEL.PIXEL_STD: [58.395, 57.12, 57.375]`` and
``MODEL.RESNETS.STRIDE_IN_1X1: False``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

Array = torch.Tensor | np.ndarray

TORCHVISION_NOTE = (
    "torchvision's ResNet weights expect INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53], "
    "MODEL.PIXEL_STD [58.395, 57.12, 57.375] and MODEL.RESNETS.STRIDE_IN_1X1 False"
)

_C2_UNIT = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_C2_PART = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}
_WRAPPERS = ("module.", "_orig_mod.")
_C2_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
_C2_STEM = re.compile(r"(?:res_)?conv1_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
_C2_DROPPED = re.compile(r"fc\d+_[wb]|.*_momentum|lr|model_iter|weight_order|pred_[wb]")

_TV_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv([1-3])|bn([1-3])|downsample\.0|downsample\.1)\.(\w+)")
_TV_STEM = re.compile(r"(conv1|bn1)\.(\w+)")
_TV_DROPPED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")
_TV_MARKER = "layer1.0.conv1.weight"


@dataclass(frozen=True)
class Converted:
    """A state dict with the model's names.

    Attributes:
        state: name to tensor or array, in the file's order.
        convention: origin of the file's names: ``"detectron2"``, ``"caffe2"`` or ``"torchvision"``.
        dropped: names in the file that no detector uses (the classifier, momentum).
        prefix: prefix added to every name, such as ``"backbone.bottom_up."``.
        note: config values that these weights need; empty for none.
        original: name in the model to name in the file, for messages.
    """

    state: dict[str, Array]
    convention: str
    dropped: list[str] = field(default_factory=list)
    prefix: str = ""
    note: str = ""
    original: dict[str, str] = field(default_factory=dict)


def caffe2_name(blob: str) -> str | None:
    """Return the name inside the ResNet of a Caffe2 blob; None if it does not belong to a ResNet.

    >>> caffe2_name("res4_22_branch2b_bn_s")
    'res4.22.conv2.norm.weight'
    """
    if match := _C2_BLOCK.fullmatch(blob):
        stage, block, unit, part = match.groups()
        return f"res{stage}.{block}.{_C2_UNIT[unit]}.{_C2_PART[part]}"
    if match := _C2_STEM.fullmatch(blob):
        return f"stem.conv1.{_C2_PART[match.group(1)]}"
    return None


def torchvision_name(name: str) -> str | None:
    """Return the name inside the ResNet of a torchvision parameter; None if it does not belong to a ResNet.

    >>> torchvision_name("layer3.0.downsample.1.running_var")
    'res4.0.shortcut.norm.running_var'
    """
    if match := _TV_BLOCK.fullmatch(name):
        stage, block, unit, conv, norm, part = match.groups()
        stage = int(stage) + 1  # torchvision counts the stages after the stem from 1
        if conv or norm:
            return f"res{stage}.{block}.conv{conv or norm}.{'norm.' if norm else ''}{part}"
        return f"res{stage}.{block}.shortcut.{'norm.' if unit.endswith('1') else ''}{part}"
    if match := _TV_STEM.fullmatch(name):
        return f"stem.conv1.{'norm.' if match.group(1) == 'bn1' else ''}{match.group(2)}"
    return None


def convert_names(state: Mapping[str, Array], model_keys: Iterable[str]) -> Converted:
    """Rename the tensors of a weight file to the model's names.

    The prefix of a wrapper, such as ``module.``, is removed, the names are converted (see :func:`caffe2_name` and
    :func:`torchvision_name`), and the prefix is added that makes most of them names of the model:
    ``backbone.bottom_up.`` for ImageNet weights.
    Shapes and values are kept; Caffe2's frozen affine layers get ``running_mean`` 0 and ``running_var`` 1.

    Args:
        state: name to tensor or array as in the file.
        model_keys: the names in the model's ``state_dict()``.

    Returns:
        The renamed tensors. Unknown names are kept, and later reported as unexpected.
    """
    state = _without_wrapper(state)
    if any(_C2_BLOCK.fullmatch(name) for name in state):
        converted = _rename_caffe2(state)
    elif (base := _torchvision_base(state)) is not None:
        converted = _rename_torchvision(state, base)
    else:
        converted = Converted(dict(state), "detectron2", original={name: name for name in state})
    return _with_prefix(converted, list(model_keys))


def _without_wrapper(state: Mapping[str, Array]) -> dict[str, Array]:
    """Remove the prefixes of all names from DistributedDataParallel, DataParallel and ``torch.compile``."""
    # A plain dict: the module versions in an OrderedDict's ``_metadata`` would change how other modules load it.
    state = dict(state)
    while prefix := next((p for p in _WRAPPERS if state and all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _rename_caffe2(state: dict[str, Array]) -> Converted:
    renamed: dict[str, Array] = {}
    original: dict[str, str] = {}
    dropped = [blob for blob in state if _C2_DROPPED.fullmatch(blob)]
    for blob in state:
        if not _C2_DROPPED.fullmatch(blob):
            original[caffe2_name(blob) or blob] = blob
    for name, blob in original.items():
        renamed[name] = state[blob]
    for name in [name for name in renamed if name.endswith(".norm.weight")]:
        layer, scale = name.removesuffix("weight"), np.asarray(renamed[name])
        renamed.setdefault(layer + "running_mean", np.zeros_like(scale))
        renamed.setdefault(layer + "running_var", np.ones_like(scale))
    return Converted(renamed, "caffe2", dropped, original=original)


def _torchvision_base(state: Mapping[str, Array]) -> str | None:
    """Return the prefix of torchvision's ResNet names (often ""); None if these are not such names."""
    prefixes = [name.removesuffix(_TV_MARKER) for name in state if ("." + name).endswith("." + _TV_MARKER)]
    return prefixes[0] if prefixes else None


def _rename_torchvision(state: dict[str, Array], base: str) -> Converted:
    renamed: dict[str, Array] = {}
    original: dict[str, str] = {}
    dropped = []
    for name, value in state.items():
        inner = name.removeprefix(base) if name.startswith(base) else name
        if _TV_DROPPED.fullmatch(inner):
            dropped.append(name)
            continue
        new = torchvision_name(inner) if name.startswith(base) else None
        renamed[new or name], original[new or name] = value, name
    return Converted(renamed, "torchvision", dropped, note=TORCHVISION_NOTE, original=original)


def _with_prefix(converted: Converted, model_keys: list[str]) -> Converted:
    prefix = _best_prefix(converted.state, model_keys)
    return Converted(
        {prefix + name: value for name, value in converted.state.items()},
        converted.convention,
        converted.dropped,
        prefix,
        converted.note,
        {prefix + new: old for new, old in converted.original.items()},
    )


def _best_prefix(names: Iterable[str], model_keys: list[str]) -> str:
    """Return the prefix that makes most of ``names`` names of the model; the shortest of several."""
    names = set(names)
    votes: Counter[str] = Counter()
    for key in model_keys:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                votes["".join(part + "." for part in parts[:cut])] += 1
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")


def group_names(names: Iterable[str]) -> list[str]:
    """Abbreviate many parameter names to few patterns, in which ``*`` stands for numbers.

    >>> group_names(["res4.0.conv1.weight", "res4.1.conv3.weight", "res4.0.conv1.bias"])
    ['res4.*.conv*.{bias,weight}']
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        module, dot, part = name.rpartition(".")
        groups.setdefault(re.sub(r"(?<!\bres)\d+", "*", module + dot), set()).add(part)
    return [
        module + (f"{{{','.join(sorted(parts))}}}" if len(parts) > 1 else parts.pop())
        for module, parts in sorted(groups.items())
    ]
