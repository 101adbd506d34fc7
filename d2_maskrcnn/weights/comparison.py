"""Compare a weight file with a model: what was loaded, what was not, and whether it belongs to another model."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.names import Converted, group_names

Shape = tuple[int, ...]

MIN_SHARE = 0.1  # of the tensors of the file or model, whichever has fewer; below it the model is another
MAX_GROUPS = 12
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32)
# Older zoo files contain these constants, which the model computes; a fixed momentum needs no batch counter.
_CONSTANTS = re.compile(r"(.*\.)?(pixel_mean|pixel_std|num_batches_tracked|anchor_generator\.cell_anchors\.\d+)")
_CLASS_DEPENDENT = re.compile(r".*\b(box_predictor\.(cls_score|bbox_pred)|mask_head\.predictor)\.(weight|bias)")
_BLOCK = re.compile(r"(.*\bres[2-5])\.(\d+)\..*")
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


@dataclass(frozen=True)
class WrongShape:
    """A tensor with a name of the model but another shape; the model keeps its initial values."""

    name: str
    in_file: Shape
    in_model: Shape


@dataclass(frozen=True)
class LoadReport:
    """The comparison of a weight file with a model.

    Attributes:
        path: the file.
        convention: origin of its names (see :class:`~d2_maskrcnn.weights.names.Converted`).
        prefix: prefix added to its names.
        loaded: names of the model that are loaded from the file.
        missing: names of the model that the file lacks.
        unexpected: names in the file, before conversion, that the model lacks.
        wrong_shape: tensors with a name of the model but another shape.
        note: config values that these weights need.
        bad_values: loaded tensors with NaN, infinite or impossible values, each with the reason.
        adapted: how the first convolution was adapted to the images' channels, or "".
    """

    path: str
    convention: str
    prefix: str
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    wrong_shape: list[WrongShape]
    note: str = ""
    bad_values: list[str] = field(default_factory=list)
    adapted: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the model is loaded from the file."""
        return not self.missing and not self.wrong_shape

    @property
    def is_backbone_only(self) -> bool:
        """Whether the file fills the ResNet only, as the weights of an image classifier do."""
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
            lines.append(_line("in the file only, ignored", self.unexpected))
        if self.adapted:
            lines.append(f"  {self.adapted}")
        if self.note:
            lines.append(f"  note: {self.note}")
        return "\n".join(lines)

    def summary(self) -> str:
        """Return one line: how many tensors are loaded, and how many are not."""
        missing, wrong, unused = len(self.missing), len(self.wrong_shape), len(self.unexpected)
        parts = {"are not in the file": missing, "have another shape there": wrong, "in the file are unused": unused}
        counts = "".join(f", {count} {what}" for what, count in parts.items() if count)
        total = len(self.loaded) + missing + wrong
        return f"{self.path}: {len(self.loaded)} of the model's {total} tensors loaded{counts}"

    def describe_bad_values(self) -> str:
        """Return the number of tensors in ``bad_values`` and the first three of them."""
        more = f" and {len(self.bad_values) - 3} more" if len(self.bad_values) > 3 else ""
        return f"{len(self.bad_values)} tensors have impossible values: {', '.join(self.bad_values[:3])}{more}"

    def _origin(self) -> str:
        return (
            "" if self.convention == "detectron2" else f" (names of {self.convention}, with the prefix {self.prefix!r})"
        )


def _line(what: str, names: list[str]) -> str:
    groups = group_names(names)
    more = [f"and {len(groups) - MAX_GROUPS} more"] if len(groups) > MAX_GROUPS else []
    return f"  {what} ({len(names)}): " + ", ".join(groups[:MAX_GROUPS] + more)


def compare(path: str, converted: Converted, model_shapes: Mapping[str, Shape]) -> LoadReport:
    """Compare the tensors of a file with those of a model, by name and shape.

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
    """Refuse the weights of another model.

    Heads that differ only in the number of classes are accepted, for fine-tuning (see :func:`class_change`).

    Raises:
        UserError: fewer than ``MIN_SHARE`` of the tensors fit, or the ResNets differ in depth or width.
    """
    smaller = min(len(converted.state), len(model_shapes))
    if len(report.loaded) < max(1, MIN_SHARE * smaller):
        raise UserError(
            f"{report.path} contains the weights of another model: {_nearest_reason(report, model_shapes)}."
        )
    _check_depth(report, converted.state, model_shapes)
    wrong = [w for w in report.wrong_shape if _BLOCK.fullmatch(w.name)]
    if wrong:
        raise UserError(
            f"{report.path} contains another ResNet's weights: {_example(wrong[0])} ({len(wrong)} tensors differ). "
            "Set MODEL.RESNETS (RES2_OUT_CHANNELS, STEM_OUT_CHANNELS, NUM_GROUPS, WIDTH_PER_GROUP) to the values that "
            "they were trained with, or choose other MODEL.WEIGHTS."
        )


def check_values(path: str, state: Mapping[str, torch.Tensor], model_state: Mapping[str, torch.Tensor]) -> list[str]:
    """Check the numbers in the tensors of a file.

    Args:
        path: the file, for messages.
        state: its tensors under the model's names.
        model_state: the model's tensors.

    Returns:
        The tensors with NaN, infinite values or negative variances, each with the reason.

    Raises:
        UserError: an integer, boolean, complex or 8-bit weight, which loading would convert silently.
    """
    wrong = [
        f"{name} ({str(value.dtype).removeprefix('torch.')})"
        for name, value in state.items()
        if value.dtype not in (FLOATS if model_state[name].is_floating_point() else INTEGERS)
    ]
    if wrong:
        raise UserError(
            f"{path} is refused: {len(wrong)} tensors are not floating point numbers of 16 to 64 bits, e.g. "
            f"{', '.join(wrong[:3])}; save the state dict of the trained model itself."
        )
    reasons = {
        name: _bad_value(name, value, model_state[name].dtype)
        for name, value in state.items()
        if value.is_floating_point()
    }
    return [f"{name} ({reason})" for name, reason in reasons.items() if reason]


def _bad_value(name: str, value: torch.Tensor, dtype: torch.dtype) -> str:
    if not torch.isfinite(value).all():
        return "NaN" if value.isnan().any() else "infinite"
    if not torch.isfinite(value.to(dtype)).all():
        return f"beyond the range of {str(dtype).removeprefix('torch.')}"
    negative = name.endswith("running_var") and value.numel() and value.min() < 0
    return "negative variance" if negative else ""


def check_evaluable(report: LoadReport) -> None:
    """Refuse weights that do not fill the whole model with finite numbers, which an evaluation needs.

    Raises:
        UserError: they do not.
    """
    if not report.is_complete:
        raise UserError(
            f"{report.path} does not fill the model ({len(report.missing)} tensors missing, {len(report.wrong_shape)} "
            "of another shape); use the weights of a complete detector, and the config that they were trained with, "
            "such as the config.yaml beside a checkpoint."
        )
    if report.adapted:
        raise UserError(
            f"{report.path} cannot be evaluated: it contains the weights of a model for images of 3 channels, and "
            "MODEL.PIXEL_MEAN has another number of values; train a model from these weights first."
        )
    if report.bad_values:
        raise UserError(
            f"{report.path} cannot be evaluated: {report.describe_bad_values()}; use an earlier checkpoint."
        )


def check_resumable(report: LoadReport) -> None:
    """Refuse to resume from a checkpoint that does not fill the whole model.

    Raises:
        UserError: it does not.
    """
    if not report.is_complete or report.adapted:
        example = [*report.missing, *(wrong.name for wrong in report.wrong_shape), report.adapted][0]
        raise UserError(
            f"Cannot resume from {report.path}: it was written by another model ({len(report.missing)} tensors "
            f"missing, {len(report.wrong_shape)} of another shape, e.g. {example}); use the config it was trained "
            "with, or another OUTPUT_DIR."
        )


def _nearest_reason(report: LoadReport, model_shapes: Mapping[str, Shape]) -> str:
    total = len(model_shapes)
    if len(report.wrong_shape) > len(report.loaded):
        return (
            f"the names fit, but {len(report.wrong_shape)} of {total} tensors have other shapes, e.g. "
            f"{_example(report.wrong_shape[0])}; use the config that these weights were trained with"
        )
    return (
        f"{len(report.loaded)} of the model's {total} tensors are in it; its names are such as "
        f"{', '.join(report.unexpected[:3])}, the model's {', '.join(report.missing[:3])}; expected the weights "
        "of a Mask R-CNN with ResNet-FPN, or of an ImageNet ResNet (MSRA .pkl or torchvision .pth)"
    )


def _example(wrong: WrongShape) -> str:
    return f"{wrong.name} is {wrong.in_file} in the file and {wrong.in_model} in the model"


def _blocks(names: Iterable[str]) -> dict[str, int]:
    """Count the blocks in each stage of the ResNet, by the full name of the stage."""
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
                f"{report.path} contains a {_depth_name(in_file)}, but the model is a {_depth_name(in_model)}: "
                + (f"set MODEL.RESNETS.DEPTH {depth}, or " if depth else "")
                + "choose other MODEL.WEIGHTS."
            )


def _depth_name(blocks: dict[str, int]) -> str:
    counts = tuple(blocks.values())
    name = f"ResNet-{_DEPTHS[counts]}" if counts in _DEPTHS else "ResNet"
    return f"{name} ({'-'.join(map(str, counts))} blocks)"


def class_change(report: LoadReport) -> tuple[int, int] | None:
    """Return the numbers of classes (in the file, in the model) if the heads differ in them, else None."""
    for wrong in report.wrong_shape:
        if _CLASS_DEPENDENT.fullmatch(wrong.name) and ".cls_score." in wrong.name:
            return wrong.in_file[0] - 1, wrong.in_model[0] - 1  # one more output for the background
        if _CLASS_DEPENDENT.fullmatch(wrong.name) and ".mask_head." in wrong.name:
            return wrong.in_file[0], wrong.in_model[0]
    return None
