"""Gives the tensors of a weight file the names that the model uses.

Three conventions are known: Detectron2's own names, Caffe2's blobs of the ImageNet models by MSRA, and torchvision's
ResNets. The rules hold for every depth.

Torchvision's ImageNet weights were trained otherwise than MSRA's: they expect ``INPUT.FORMAT: RGB``,
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
_C2_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
_C2_STEM = re.compile(r"(?:res_)?conv1_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
_C2_DROPPED = re.compile(r"fc\d+_[wb]|.*_momentum|lr|model_iter|weight_order|pred_[wb]")

_TV_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv([1-3])|bn([1-3])|downsample\.0|downsample\.1)\.(\w+)")
_TV_STEM = re.compile(r"(conv1|bn1)\.(\w+)")
_TV_DROPPED = re.compile(r"fc\.(weight|bias)|.*\.num_batches_tracked")
_TV_MARKER = "layer1.0.conv1.weight"


@dataclass(frozen=True)
class Converted:
    """A state dict under the model's names.

    Attributes:
        state: name to tensor or array, in the file's order.
        convention: ``"detectron2"``, ``"caffe2"`` or ``"torchvision"``: whose names the file used.
        dropped: names in the file that no detector uses (the classifier, momentum).
        prefix: what was put before every name, say ``"backbone.bottom_up."``.
        note: what else these weights ask for; empty for none.
        original: the model's name to the name in the file, for messages.
    """

    state: dict[str, Array]
    convention: str
    dropped: list[str] = field(default_factory=list)
    prefix: str = ""
    note: str = ""
    original: dict[str, str] = field(default_factory=dict)


def caffe2_name(blob: str) -> str | None:
    """The name inside the ResNet of one of Caffe2's blobs; None for a blob that is none of a ResNet's.

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
    """The name inside our ResNet of a tensor of torchvision's; None for one that is none of a ResNet's.

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
    """Renames the tensors of a weight file to the model's names.

    First the convention (see :func:`caffe2_name`, :func:`torchvision_name`), then the wrapper's ``module.`` goes,
    then the prefix is found that makes most names the model's, so ImageNet weights land in ``backbone.bottom_up.``.
    Shapes and values stay as they are; Caffe2's frozen affine layers get ``running_mean`` 0 and ``running_var`` 1.

    Args:
        state: name to tensor or array as in the file.
        model_keys: the names in the model's ``state_dict()``.

    Returns:
        The renamed tensors; names that no rule knows are kept (and will be reported as unexpected).
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
    """Without the ``module.`` that DistributedDataParallel and DataParallel put before every name."""
    state = dict(
        state
    )  # plain: torch's version numbers of modules (``_metadata``) must not rule how other modules read these
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
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
    """What stands before torchvision's ResNet names (mostly nothing); None if these are no such names."""
    found = [name.removesuffix(_TV_MARKER) for name in state if ("." + name).endswith("." + _TV_MARKER)]
    return found[0] if found else None


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
    """The prefix under which most of ``names`` are names of the model; at equal numbers the shortest."""
    names = set(names)
    votes: Counter[str] = Counter()
    for key in model_keys:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                votes["".join(part + "." for part in parts[:cut])] += 1
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")
