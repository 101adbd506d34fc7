"""Histograms and statistics of every parameter and buffer, warnings, and changes since another checkpoint.

A checkpoint alone is enough: no model is built.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.statistics import TensorStatistics, describe, histogram
from d2_maskrcnn.visualization.figures import literal, new_figure, show_bars
from d2_maskrcnn.weights import convert_names, fetch_weights, read_weights
from detectron2.config import CfgNode
from detectron2.modeling import build_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
# The weights of Detectron2's model zoo stay below 20; larger ones come from an unstable training.
EXPLODING = 100.0
EXPLODING_VARIANCE = 1e6  # of running variances, which are squares of activations
_EPSILON = 1e-12
_KINDS = ("NaN", "infinite", "dead", "exploding", "untrained", "unchanged")  # words that the flags contain
_INITIAL = {"running_var": 1.0, "running_mean": 0.0, "bias": 0.0, "weight": 1.0}  # of norms and biases

State = Mapping[str, torch.Tensor]


@dataclass(kw_only=True)
class TensorFindings(TensorStatistics):
    """Statistics of one parameter or buffer.

    Attributes:
        group: the module that it belongs to.
        edges, counts: histogram of the finite values.
        dead_filters: output channels whose weights are all zero.
        flags: warnings.
        change: L2 norm of the difference to the other checkpoint, relative to the other's norm.
        max_change: largest absolute difference.
    """

    name: str
    group: str
    edges: list[float]
    counts: list[int]
    dead_filters: int = 0
    flags: list[str] = field(default_factory=list)
    change: float | None = None
    max_change: float | None = None


@dataclass
class WeightFindings:
    """All tensors of a checkpoint, and its comparison with another checkpoint.

    Attributes:
        name, other: the two checkpoints.
        parameters: number of values of all tensors.
        only_here, only_there, other_shape: tensors that cannot be compared.
    """

    name: str
    tensors: list[TensorFindings]
    parameters: int
    other: str | None = None
    only_here: list[str] = field(default_factory=list)
    only_there: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON."""
        return {**vars(self), "flagged": self.kinds, "tensors": [vars(tensor) for tensor in self.tensors]}

    @property
    def kinds(self) -> dict[str, int]:
        """Number of tensors with a flag of each kind."""
        kinds = [{next(kind for kind in _KINDS if kind in flag) for flag in tensor.flags} for tensor in self.tensors]
        return {kind: n for kind in _KINDS if (n := sum(kind in of_tensor for of_tensor in kinds))}

    @property
    def flagged(self) -> list[TensorFindings]:
        """The tensors with warnings."""
        return [tensor for tensor in self.tensors if tensor.flags]


def read_state(path: str) -> dict[str, torch.Tensor]:
    """Read the tensors of a weight file, under this project's names.

    Raises:
        UserError: the file is missing, damaged or not a weight file.
    """
    state = convert_names(read_weights(path)["model"], ()).state
    return {name: v if torch.is_tensor(v) else torch.as_tensor(np.asarray(v)) for name, v in state.items()}


def initial_weights(cfg: CfgNode, path: str) -> dict[str, torch.Tensor] | None:
    """Rebuild the random weights that a training began with, before it loaded any file.

    Args:
        cfg: config of the model.
        path: weight file. The checkpoints of this project's trainer store the seed; for others ``SEED`` of the config
            is used.

    Returns:
        The tensors, or None if the seed is unknown.
    """
    trainer = read_weights(fetch_weights(path)).get("trainer")  # in other programs' checkpoints this can be anything
    seed = trainer.get("initial_seed") if isinstance(trainer, dict) else None
    seed = seed if isinstance(seed, int) else cfg.SEED
    if seed < 0:
        return None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(build_model(cfg).state_dict())


def inspect_weights(
    state: State | nn.Module,
    name: str = "model",
    other: State | None = None,
    other_name: str = "other",
    initial: State | None = None,
) -> WeightFindings:
    """Compute the statistics of every tensor, and its change since another checkpoint.

    Args:
        state: a model or its state dict.
        name, other_name: names of the two checkpoints, for messages.
        other: the state to compare with; equal tensors are flagged as unchanged.
        initial: the state before training; equal tensors are flagged as untrained.

    Raises:
        UserError: the two states have no tensor in common.
    """
    tensors = dict(state.state_dict()) if isinstance(state, nn.Module) else dict(state)
    inspected = [_inspect(key, value, (initial or {}).get(key)) for key, value in tensors.items()]
    findings = WeightFindings(name, inspected, sum(math.prod(tensor.shape) for tensor in inspected))
    if other is not None:
        _compare(findings, tensors, other, other_name)
    return findings


def group_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to, such as ``backbone.bottom_up.res2``."""
    parts = name.split(".")
    depth = 3 if name.startswith("backbone.bottom_up.") else 2 if parts[0] in ("roi_heads", "proposal_generator") else 1
    return ".".join(parts[:depth])


def _inspect(name: str, tensor: torch.Tensor, initial: torch.Tensor | None) -> TensorFindings:
    values = tensor.detach().float().cpu()
    statistics, finite = describe(values)
    edges, counts = histogram(finite.numpy(), BINS)
    findings = TensorFindings(name=name, group=group_of(name), edges=edges, counts=counts, **vars(statistics))
    if values.dim() >= 2 and values.numel() > 0:
        findings.dead_filters = int((values == 0).flatten(1).all(dim=1).sum())
    findings.flags = _flags(findings, values.numel()) + _untrained(name, values, initial)
    return findings


def _flags(tensor: TensorFindings, count: int) -> list[str]:
    flags = [f"{n} of {count} values are {kind}" for n, kind in ((tensor.nan, "NaN"), (tensor.inf, "infinite")) if n]
    if count and tensor.zeros == 1 and tensor.name.endswith("weight"):
        flags.append("dead: all zero")
    elif tensor.dead_filters:
        flags.append(f"dead: {tensor.dead_filters} of {tensor.shape[0]} output channels have only zeros")
    limit = EXPLODING_VARIANCE if tensor.name.endswith("running_var") else EXPLODING
    largest = max(abs(tensor.min or 0.0), abs(tensor.max or 0.0))
    if not tensor.name.endswith(("num_batches_tracked", "running_mean")) and largest > limit:
        flags.append(f"exploding: values up to {largest:.3g}")
    return flags


def _untrained(name: str, values: torch.Tensor, initial: torch.Tensor | None) -> list[str]:
    """Return a warning if a tensor equals its initialization: a constant for norms and biases, else ``initial``."""
    if values.numel() == 0:
        return []
    constant = _INITIAL.get(name.rsplit(".", 1)[-1])
    of_norm = values.dim() == 1 or not name.endswith("weight")
    if constant is not None and of_norm and bool((values == constant).all()):
        return [f"untrained: all values are the initial {constant:g}"]
    if initial is not None and values.dim() >= 2 and torch.equal(values, initial.detach().float().cpu()):
        return ["untrained: equal to its initialization"]
    return []


def _compare(findings: WeightFindings, state: State, other: State, other_name: str) -> None:
    if not any(name in other for name in state):
        raise UserError(
            f"{other_name} has no tensor in common with {findings.name} ({next(iter(other), 'no tensor')} there, "
            f"{next(iter(state), 'no tensor')} here): compare two checkpoints of the same model"
        )
    findings.other = other_name
    findings.only_here = [name for name in state if name not in other]
    findings.only_there = [name for name in other if name not in state]
    for tensor in findings.tensors:
        if tensor.name not in other:
            continue
        mine, theirs = (value.detach().double().cpu() for value in (state[tensor.name], other[tensor.name]))
        if mine.shape != theirs.shape:
            findings.other_shape.append(tensor.name)
            continue
        difference = mine - theirs
        tensor.change = float(difference.norm() / theirs.norm().clamp(min=_EPSILON)) if mine.numel() else 0.0
        tensor.max_change = float(difference.abs().max()) if mine.numel() else 0.0
        if tensor.max_change == 0 and not tensor.name.endswith("num_batches_tracked"):
            tensor.flags.append(f"unchanged: equal to {other_name}")


def by_group(findings: WeightFindings) -> dict[str, list[TensorFindings]]:
    """Return the tensors of each group, in the checkpoint's order."""
    groups: dict[str, list[TensorFindings]] = {}
    for tensor in findings.tensors:
        groups.setdefault(tensor.group, []).append(tensor)
    return groups


def draw_weights(findings: WeightFindings, group: str | None = None, limit: int = 24) -> "Figure":
    """Draw histograms of the first ``limit`` tensors of a group (None: of all groups), flagged ones first."""
    chosen = [tensor for tensor in findings.tensors if group is None or tensor.group == group]
    chosen = sorted(chosen, key=lambda tensor: not tensor.flags)[:limit]
    columns = 4
    rows = max(-(-len(chosen) // columns), 1)
    figure, axes = new_figure(rows, columns, (11.0, 1.7 * rows))
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    for axis, tensor in zip(axes, chosen, strict=False):
        short = tensor.name.removeprefix("backbone.bottom_up." if group is None else f"{group}.")
        show_bars(axis, tensor.edges, tensor.counts, short, "C3" if tensor.flags else "C0")
        axis.set_yticks([])
    if group is not None:
        flagged = " (red: flagged)" if any(t.flags for t in chosen) else ""
        figure.suptitle(literal(group) + flagged, fontsize=10)
    return figure


def draw_overview(findings: WeightFindings) -> "Figure":
    """Draw range (line) and mean ± standard deviation (bar) of every tensor, in the checkpoint's order, by group."""
    figure, (axis,) = new_figure(1, 1, (12.0, 5.0))
    position = 0
    ticks: list[float] = []
    names: list[str] = []
    for number, (group, tensors) in enumerate(by_group(findings).items()):
        places = np.arange(position, position + len(tensors))
        columns = zip(*[(t.min, t.max, t.mean, t.std) for t in tensors], strict=True)
        low, high, mean, std = (np.array([np.nan if v is None else v for v in column]) for column in columns)
        axis.vlines(places, low, high, f"C{number % 10}", linewidth=0.6)
        axis.vlines(places, mean - std, mean + std, f"C{number % 10}", linewidth=2.0)
        flagged = [place for place, tensor in zip(places, tensors, strict=True) if tensor.flags]
        axis.plot(flagged, [0.0] * len(flagged), "rx", markersize=4)
        # Names are at least a fortieth of the width apart, so that those of small groups do not overlap.
        ticks.append(max(position + len(tensors) / 2, (ticks[-1] if ticks else -np.inf) + len(findings.tensors) / 40))
        names.append(literal(group.removeprefix("backbone.bottom_up.")))
        position += len(tensors)
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_xticks(ticks, names, rotation=45, ha="right", fontsize=7)
    title = f"{literal(findings.name)}: range, mean and standard deviation of every tensor (red: flagged)"
    axis.set_title(title, fontsize=9)
    return figure
