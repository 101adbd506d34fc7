"""Count the parameters, operations and activations of a model, by fvcore."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count, parameter_count_table
from fvcore.nn import FlopCountAnalysis as _FlopCountAnalysis
from torch import nn

from detectron2._names import lookup
from detectron2.structures import Boxes, Instances

__all__ = [
    "FlopCountAnalysis",
    "activation_count_operators",
    "find_unused_parameters",
    "flop_count_operators",
    "parameter_count",
    "parameter_count_table",
]

# Operations that are not counted: of single values, sorting and selection.
_NOT_COUNTED = (
    "add add_ argmax argsort batch_norm bitwise_and clamp constant_pad_nd cumsum div div_ exp eq exp_ ge gt log2 lt "
    "max max_pool2d mean meshgrid mul mul_ neg nonzero_numpy pad reciprocal relu_ repeat_interleave rsqrt rsub sigmoid "
    "sigmoid_ softmax sort sqrt sub sum topk where"
)


class _Traceable(nn.Module):
    """Call ``model`` on tensors that replace those in ``inputs``, and return the tensors in its output."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        import torchvision  # noqa: F401 - it cannot be imported while the model is traced

        self.model = model
        self._inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_tensors(self.model(*_replace(self._inputs, iter(tensors)))))


class FlopCountAnalysis(_FlopCountAnalysis):
    """Count the multiply-adds of a model, as fvcore's class of this name does, for models that take any Python object.

    Args:
        model: in the mode in which it is counted.
        inputs: the argument of the model, or a tuple of arguments; for detectors a list of dicts.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        super().__init__(_Traceable(model, arguments), tuple(_tensors(arguments)))
        self.uncalled_modules_warnings(False)  # of norms that are folded into convolutions
        self.set_op_handle(**{f"aten::{name}": None for name in _NOT_COUNTED.split()}, **{"torchvision::nms": None})


def flop_count_operators(model: nn.Module, inputs: list[Any]) -> defaultdict[str, float]:
    """Count the multiply-adds of each kind of operation in inference.

    Args:
        model: a detector; its mode is restored. inputs: its argument, a list of dicts.

    Returns:
        operation, such as ``conv``, -> billions of multiply-adds. The work of the heads depends on the image.
    """
    return _in_billions(model, lambda: FlopCountAnalysis(model, inputs))


def activation_count_operators(model: nn.Module, inputs: list[Any], **kwargs: Any) -> defaultdict[str, float]:
    """Count the outputs of the convolutions and matrix products in inference; see :func:`flop_count_operators`.

    Returns:
        operation -> millions of values.
    """
    traced = _Traceable(model, (inputs,))
    millions = _in_billions(model, lambda: ActivationCountAnalysis(traced, tuple(_tensors(inputs)), **kwargs))
    return defaultdict(float, {name: value * 1000 for name, value in millions.items()})


def find_unused_parameters(model: nn.Module, inputs: Any) -> list[str]:
    """Return the names of the parameters that get no gradient from a training step.

    Args:
        model: returns one loss or a dict of losses. inputs: its argument.

    Raises:
        ValueError: the model is not in training mode.
    """
    if not model.training:
        raise ValueError("find_unused_parameters needs a model in training mode: call model.train()")
    for parameter in model.parameters():
        parameter.grad = None
    losses = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    sum(_tensors(losses)).backward()  # type: ignore[union-attr]
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.zero_grad()
    return unused


def _in_billions(model: nn.Module, analyze: Any) -> defaultdict[str, float]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, about Python values that become constants
            counts = analyze().unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    finally:
        model.train(was_training)
    return defaultdict(float, {name: count / 1e9 for name, count in counts.items()})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested lists, tuples, dicts, ``Instances`` and ``Boxes``."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Boxes):
        yield value.tensor
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, (dict, Instances)):
        fields = value.get_fields() if isinstance(value, Instances) else value
        for item in fields.values():
            yield from _tensors(item)


def _replace(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """Copy nested lists, tuples, dicts, ``Instances`` and ``Boxes``, taking the next of ``tensors`` for each tensor."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Boxes):
        return Boxes(next(tensors))
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, tensors) for item in value)
    if isinstance(value, dict):
        return {name: _replace(item, tensors) for name, item in value.items()}
    if isinstance(value, Instances):
        return Instances(value.image_size, **_replace(value.get_fields(), tensors))
    return value


__getattr__ = lookup(__name__)
