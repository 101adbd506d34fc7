"""Says briefly what a weight file gave the model and what it did not, and recognises the files of other models."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.names import Converted

Shape = tuple[int, ...]

MIN_SHARE = 0.1  # of the smaller side's tensors; a file with fewer that fit belongs to another model
MAX_GROUPS = 12
# Older zoo files keep these constants, which the model computes; BatchNorm's counter has no use at a fixed momentum.
_CONSTANTS = re.compile(r"(.*\.)?(pixel_mean|pixel_std|num_batches_tracked|anchor_generator\.cell_anchors\.\d+)")
_CLASS_DEPENDENT = re.compile(r".*\b(box_predictor\.(cls_score|bbox_pred)|mask_head\.predictor)\.(weight|bias)")
_BLOCK = re.compile(r"(.*\bres[2-5])\.(\d+)\..*")
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


@dataclass(frozen=True)
class WrongShape:
    """A tensor that has the model's name and another shape; the model keeps its initial values."""

    name: str
    in_file: Shape
    in_model: Shape


@dataclass(frozen=True)
class LoadReport:
    """What one weight file gave a model.

    Attributes:
        path: the file.
        convention: whose names it used (see :class:`~d2_maskrcnn.weights.names.Converted`).
        prefix: what was put before its names.
        loaded: the model's names that the file fills.
        missing: the model's names that it lacks.
        unexpected: names in the file (as they stand there) that the model lacks.
        wrong_shape: tensors of the right name and another shape.
        note: what else these weights ask for.
    """

    path: str
    convention: str
    prefix: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[WrongShape]
    note: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the model came from the file."""
        return not self.missing and not self.wrong_shape

    @property
    def is_backbone_only(self) -> bool:
        """Whether these are a classifier's weights, which leave all but the ResNet at its initial values."""
        return bool(self.prefix) and not any(name.startswith(self.prefix) for name in self.missing)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.wrong_shape)
        lines = [f"{self.path}: {len(self.loaded)} of the model's {total} tensors loaded{self._origin()}"]
        if self.missing:
            lines.append(_line("not in the file, keep their initial values", self.missing))
        if self.wrong_shape:
            lines.append(f"  of another shape, keep their initial values ({len(self.wrong_shape)}):")
            lines.extend(f"    {w.name}: {w.in_file} in the file, {w.in_model} in the model" for w in self.wrong_shape)
        if self.unexpected:
            lines.append(_line("in the file only, not used", self.unexpected))
        if self.note:
            lines.append(f"  note: {self.note}")
        return "\n".join(lines)

    def _origin(self) -> str:
        return "" if self.convention == "detectron2" else f" ({self.convention}'s names, put under {self.prefix!r})"


def _line(what: str, names: list[str]) -> str:
    groups = group_names(names)
    more = [f"and {len(groups) - MAX_GROUPS} more"] if len(groups) > MAX_GROUPS else []
    return f"  {what} ({len(names)}): " + ", ".join(groups[:MAX_GROUPS] + more)


def group_names(names: Iterable[str]) -> list[str]:
    """Writes many parameter names as few patterns.

    >>> group_names(f"res4.{block}.conv{i}.weight" for block in range(23) for i in (1, 2, 3))
    ['res4.{0-22}.conv{1,2,3}.weight']
    """
    groups = [tuple(frozenset([token]) for token in _tokens(name)) for name in sorted(set(names))]
    for position in reversed(range(max(map(len, groups), default=0))):
        groups = _merge(groups, position)
    return ["".join(_pattern(alternatives) for alternatives in group) for group in groups]


def _tokens(name: str) -> list[str]:
    """The name in pieces: numbers, the dots, and what stands between them."""
    return re.findall(r"\d+|\.|[^\d.]+", name)


def _merge(groups: list[tuple[frozenset[str], ...]], position: int) -> list[tuple[frozenset[str], ...]]:
    """Joins the groups that differ at one position only, and there both by numbers or both by words."""
    merged: dict[Any, set[str]] = {}
    for group in groups:
        if position < len(group):
            key = (group[:position], group[position + 1 :], _kind(group[position]))
            merged.setdefault(key, set()).update(group[position])
        else:
            merged.setdefault((group, None, None), set())
    return [
        before if after is None else (*before, frozenset(tokens), *after)
        for (before, after, _), tokens in merged.items()
    ]


def _kind(tokens: frozenset[str]) -> str:
    token = next(iter(tokens))
    return "number" if token.isdigit() else "dot" if token == "." else "word"


def _pattern(tokens: frozenset[str]) -> str:
    if len(tokens) == 1:
        return next(iter(tokens))
    if _kind(tokens) == "word":
        return "{" + ",".join(sorted(tokens)) + "}"
    numbers = sorted(map(int, tokens))
    if len(numbers) > 3 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}-{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def compare(path: str, converted: Converted, model_shapes: Mapping[str, Shape]) -> LoadReport:
    """Compares the tensors of a file with those of a model, by name and shape.

    Args:
        path: the file, for messages.
        converted: its tensors under the model's names.
        model_shapes: name to shape of every tensor in the model's state dict.
    """
    shapes = {name: tuple(value.shape) for name, value in converted.state.items()}
    wrong = [
        WrongShape(name, shapes[name], model_shapes[name])
        for name in model_shapes
        if name in shapes and shapes[name] != model_shapes[name]
    ]
    return LoadReport(
        path=path,
        convention=converted.convention,
        prefix=converted.prefix,
        loaded=[name for name in model_shapes if shapes.get(name) == model_shapes[name]],
        missing=[name for name in model_shapes if name not in shapes and not _CONSTANTS.fullmatch(name)],
        unexpected=[
            converted.original.get(name, name)
            for name in shapes
            if name not in model_shapes and not _CONSTANTS.fullmatch(name)
        ],
        wrong_shape=wrong,
        note=converted.note,
    )


def check_same_model(report: LoadReport, converted: Converted, model_shapes: Mapping[str, Shape]) -> None:
    """Refuses the weights of another model.

    Heads that differ in the number of classes only are no reason: fine-tuning begins so. (:func:`class_change` names
    them.)

    Raises:
        UserError: (almost) nothing fits, or the ResNets differ in depth or width.
    """
    smaller = min(len(converted.state), len(model_shapes))
    if len(report.loaded) < max(1, MIN_SHARE * smaller):
        raise UserError(f"{report.path} holds the weights of another model: {_nearest_reason(report, model_shapes)}.")
    _check_depth(report, converted.state, model_shapes)
    wrong = [w for w in report.wrong_shape if _BLOCK.fullmatch(w.name)]
    if wrong:
        raise UserError(
            f"{report.path} holds the weights of another ResNet: {_example(wrong[0])} ({len(wrong)} tensors differ); "
            "set MODEL.RESNETS (RES2_OUT_CHANNELS, STEM_OUT_CHANNELS, NUM_GROUPS, WIDTH_PER_GROUP) as these weights "
            "were trained, or choose other MODEL.WEIGHTS."
        )


def _nearest_reason(report: LoadReport, model_shapes: Mapping[str, Shape]) -> str:
    total = len(model_shapes)
    if len(report.wrong_shape) > len(report.loaded):
        return (
            f"the names fit, but {len(report.wrong_shape)} of {total} tensors have other shapes, e.g. "
            f"{_example(report.wrong_shape[0])}; use the config that these weights were trained with"
        )
    return (
        f"{len(report.loaded)} of the model's {total} tensors are in it; its names look like "
        f"{', '.join(report.unexpected[:3])}, the model's like {', '.join(report.missing[:3])}; expected the weights "
        "of a Mask R-CNN with ResNet-FPN, or of an ImageNet ResNet (MSRA .pkl or torchvision .pth)"
    )


def _example(wrong: WrongShape) -> str:
    return f"{wrong.name} is {wrong.in_file} in the file and {wrong.in_model} in the model"


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Number of blocks in each stage of the ResNet, by the stage's name with all that stands before it."""
    blocks: Counter[str] = Counter()
    for match in filter(None, map(_BLOCK.fullmatch, names)):
        blocks[match.group(1)] = max(blocks[match.group(1)], int(match.group(2)) + 1)
    return dict(sorted(blocks.items()))


def _check_depth(report: LoadReport, file_names: Iterable[str], model_names: Iterable[str]) -> None:
    in_file, in_model = _blocks(file_names), _blocks(model_names)
    for stage in in_file.keys() & in_model.keys():
        if in_file[stage] != in_model[stage]:
            depth = _DEPTHS.get(tuple(in_file.values()))
            raise UserError(
                f"{report.path} holds a {_depth_name(in_file)}, but the model is a {_depth_name(in_model)}: "
                + (f"set MODEL.RESNETS.DEPTH {depth}, or " if depth else "")
                + "choose other MODEL.WEIGHTS."
            )


def _depth_name(blocks: dict[str, int]) -> str:
    counts = tuple(blocks.values())
    name = f"ResNet-{_DEPTHS[counts]}" if counts in _DEPTHS else "ResNet"
    return f"{name} ({'-'.join(map(str, counts))} blocks)"


def class_change(report: LoadReport) -> tuple[int, int] | None:
    """The numbers of classes (in the file, in the model) where the heads differ by them; None where they don't."""
    for wrong in report.wrong_shape:
        if _CLASS_DEPENDENT.fullmatch(wrong.name) and ".cls_score." in wrong.name:
            return wrong.in_file[0] - 1, wrong.in_model[0] - 1  # one more output for the background
        if _CLASS_DEPENDENT.fullmatch(wrong.name) and ".mask_head." in wrong.name:
            return wrong.in_file[0], wrong.in_model[0]
    return None
