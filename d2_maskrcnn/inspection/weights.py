"""Stage 5: histograms and numbers of every parameter and buffer, what is wrong with them, and what changed between two.

Works on a checkpoint alone: nothing is built.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.inspection.statistics import histogram, spread
from d2_maskrcnn.inspection.untrained import untrained
from d2_maskrcnn.visualization.figures import new_figure, show_bars
from d2_maskrcnn.weights import convert_names, read_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 40
# A weight beyond this is no longer the work of a stable training: those of the model zoo stay below 20.
EXPLODING = 100.0
EXPLODING_VARIANCE = 1e6  # likewise for running variances, which are squares of activations
FLOAT32_EPS = 1e-12
# Two trainings from other random numbers differ by 1.4 times the norm, checkpoints of one training by less than this.
SAME_TRAINING = 1.0
# What flags begin with or say; the more special one first.
_KINDS = ("NaN", "infinite", "dead", "exploding", "perhaps untrained", "untrained", "unchanged")

State = Mapping[str, torch.Tensor]


@dataclass
class TensorFindings:
    """One parameter or buffer; min, max, mean and std are over the finite values (None if there are none).

    group: the module it belongs to. edges, counts: histogram of the finite values. dead_filters: output channels whose
    weights are all zero. flags: what is wrong, in words. change: L2 norm of the difference to the other checkpoint,
    relative to the other's; max_change: largest absolute difference.
    """

    name: str
    group: str
    shape: list[int]
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    zeros: float
    nan: int
    inf: int
    dead_filters: int
    edges: list[float]
    counts: list[int]
    flags: list[str] = field(default_factory=list)
    change: float | None = None
    max_change: float | None = None


@dataclass
class WeightFindings:
    """All tensors of one checkpoint, and its comparison with another where there is one."""

    name: str
    tensors: list[TensorFindings]
    parameters: int
    other: str | None = None
    only_here: list[str] = field(default_factory=list)
    only_there: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """The numbers alone."""
        return {**vars(self), "flagged": self.kinds, "tensors": [vars(tensor) for tensor in self.tensors]}

    @property
    def kinds(self) -> dict[str, int]:
        """How many tensors have a flag of each kind."""
        words = [word for tensor in self.tensors for word in dict.fromkeys(map(_kind_of, tensor.flags))]
        return {kind: words.count(kind) for kind in _KINDS if kind in words}

    @property
    def flagged(self) -> list[TensorFindings]:
        """The tensors that something is wrong with."""
        return [tensor for tensor in self.tensors if tensor.flags]


def _kind_of(flag: str) -> str:
    return next(kind for kind in _KINDS if kind in flag)


def read_state(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a weight file, under the names that this project uses.

    Raises:
        UserError: it is missing, broken or no weight file.
    """
    converted = convert_names(read_weights(path)["model"], ())
    return {name: torch.as_tensor(np.asarray(value) if not torch.is_tensor(value) else value) for name, value in
            converted.state.items()}  # fmt: skip


def inspect_weights(
    state: State | nn.Module,
    name: str = "model",
    other: State | None = None,
    other_name: str = "other",
    fresh: State | None = None,
    exact: bool = False,
) -> WeightFindings:
    """Looks at every tensor.

    Args:
        state: a model or its state dict.
        other: another state to compare with; tensors that are equal to it are flagged as unchanged.
        fresh: a state that was just initialised by the same config; tensors that are equal to it are flagged as
            untrained, and unless ``exact`` those that cannot be told from its random numbers as perhaps untrained.
        exact: ``fresh`` is the very initialisation that the training began with.

    Raises:
        UserError: the two states have no tensor in common.
    """
    tensors = dict(state.state_dict()) if isinstance(state, nn.Module) else dict(state)
    found = [_describe(key, value) for key, value in tensors.items()]
    findings = WeightFindings(name, found, sum(math.prod(tensor.shape) for tensor in found))
    for tensor in found:
        word = untrained(tensor.name, tensors[tensor.name], (fresh or {}).get(tensor.name), exact)
        tensor.flags += [word] if word else []
    if other is not None:
        _compare(findings, tensors, other, other_name)
    return findings


def group_of(name: str) -> str:
    """The part of the model that a tensor belongs to: two levels for the backbone's stages, else its head."""
    parts = name.split(".")
    if name.startswith("backbone.bottom_up."):
        return ".".join(parts[:3])
    return (
        ".".join(parts[: 2 if parts[0] in ("roi_heads", "proposal_generator") else 1]) if len(parts) > 1 else parts[0]
    )


def _describe(name: str, tensor: torch.Tensor) -> TensorFindings:
    values = tensor.detach().float().cpu()
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    finite = values[values.isfinite()] if nan + infinite else values.flatten()
    some = finite.numel() > 0
    zero = values == 0
    low, high = (float(finite.min()), float(finite.max())) if some else (0.0, 0.0)
    edges, counts = histogram(finite.numpy(), BINS)
    is_weight = values.dim() >= 2 and values.numel() > 0
    found = TensorFindings(
        name=name,
        group=group_of(name),
        shape=list(values.shape),
        min=low if some else None,
        max=high if some else None,
        mean=float(finite.mean(dtype=torch.float64)) if some else None,
        std=spread(finite) if some else None,
        zeros=float(zero.float().mean()) if values.numel() else 0.0,
        nan=nan,
        inf=infinite,
        dead_filters=int(zero.flatten(1).all(dim=1).sum()) if is_weight else 0,
        edges=edges,
        counts=counts,
    )
    found.flags = _flags(found, values)
    return found


def _flags(tensor: TensorFindings, values: torch.Tensor) -> list[str]:
    flags = []
    if tensor.nan:
        flags.append(f"{tensor.nan} of {values.numel()} values are NaN")
    if tensor.inf:
        flags.append(f"{tensor.inf} of {values.numel()} values are infinite")
    is_weight = tensor.name.endswith("weight")
    if values.numel() and tensor.zeros == 1 and is_weight:
        flags.append("dead: all zero")
    elif tensor.dead_filters:
        flags.append(f"dead: {tensor.dead_filters} of {tensor.shape[0]} output channels have only zeros")
    variance = tensor.name.endswith("running_var")
    limit = EXPLODING_VARIANCE if variance else EXPLODING
    largest = max(abs(tensor.min or 0.0), abs(tensor.max or 0.0))
    if not tensor.name.endswith(("num_batches_tracked", "running_mean")) and largest > limit:
        flags.append(f"exploding: values up to {largest:.3g}")
    return flags


def _compare(findings: WeightFindings, state: Mapping[str, torch.Tensor], other: State, other_name: str) -> None:
    shared = [name for name in state if name in other]
    if not shared:
        raise UserError(
            f"{other_name} has no tensor in common with {findings.name} (it has {next(iter(other), 'none')}, the other "
            f"{next(iter(state), 'none')}): compare two checkpoints of the same model"
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
        tensor.change = float(difference.norm() / theirs.norm().clamp(min=FLOAT32_EPS)) if mine.numel() else 0.0
        tensor.max_change = float(difference.abs().max()) if mine.numel() else 0.0
        if 0 < tensor.change < SAME_TRAINING:  # it has moved: whatever it looks like, it is being trained
            tensor.flags = [flag for flag in tensor.flags if not flag.startswith("perhaps")]
        if tensor.max_change == 0 and not tensor.name.endswith("num_batches_tracked"):
            tensor.flags.append(f"unchanged: equal to {other_name}")


def draw_weights(findings: WeightFindings, group: str | None = None, limit: int = 24) -> "Figure":
    """Histograms of the tensors of a group (the first ``limit``), the flagged ones first; of all groups if None."""
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
        figure.suptitle(f"{group} (red: flagged)" if any(t.flags for t in chosen) else group, fontsize=10)
    return figure


def by_group(findings: WeightFindings) -> dict[str, list[TensorFindings]]:
    """The tensors of each group, in the checkpoint's order."""
    groups: dict[str, list[TensorFindings]] = {}
    for tensor in findings.tensors:
        groups.setdefault(tensor.group, []).append(tensor)
    return groups


def summary(tensor: TensorFindings) -> dict[str, Any]:
    """The numbers of one tensor for a table."""
    return {
        key: getattr(tensor, key) for key in ("name", "shape", "min", "max", "mean", "std", "zeros", "change", "flags")
    }


def draw_overview(findings: WeightFindings) -> "Figure":
    """Range (line) and mean ± standard deviation (bar) of every tensor, in the checkpoint's order, by group."""
    figure, axes = new_figure(1, 1, (12.0, 5.0))
    axis, position = axes[0], 0
    ticks: list[float] = []
    names: list[str] = []
    for number, (group, tensors) in enumerate(by_group(findings).items()):
        finite = [(i, t) for i, t in enumerate(tensors, start=position) if t.min is not None]
        colour = f"C{number % 10}"
        places = [i for i, _ in finite]
        axis.vlines(places, [t.min or 0 for _, t in finite], [t.max or 0 for _, t in finite], colour, linewidth=0.6)
        spread = [((t.mean or 0) - (t.std or 0), (t.mean or 0) + (t.std or 0)) for _, t in finite]
        axis.vlines(places, [low for low, _ in spread], [high for _, high in spread], colour, linewidth=2.0)
        flagged = [i for i, t in finite if t.flags]
        axis.plot(flagged, [0.0] * len(flagged), "rx", markersize=4)
        # Names of small parts would lie over each other: at least a fortieth of the width between two of them.
        ticks.append(max(position + len(tensors) / 2, (ticks[-1] if ticks else -np.inf) + len(findings.tensors) / 40))
        names.append(group.removeprefix("backbone.bottom_up."))
        position += len(tensors)
    axis.set_yscale("symlog", linthresh=0.01)
    axis.set_xticks(ticks, names, rotation=45, ha="right", fontsize=7)
    axis.set_title(f"{findings.name}: range, mean and standard deviation of every tensor (red: flagged)", fontsize=9)
    return figure
