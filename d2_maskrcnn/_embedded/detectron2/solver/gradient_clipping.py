"""Optimizers that clip the gradient of each parameter before a step."""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from detectron2.config import CfgNode

Clipper = Callable[[torch.nn.Parameter], Any]
OptimizerOrClass = TypeVar("OptimizerOrClass", bound=torch.optim.Optimizer | type[torch.optim.Optimizer])


def _create_clipper(cfg: CfgNode) -> Clipper:
    """Return the clipping of ``CLIP_TYPE``: each element to +-CLIP_VALUE, or each parameter's gradient norm to
    CLIP_VALUE.
    """
    clip_value, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if cfg.CLIP_TYPE == "value":
        return lambda parameter: clip_grad_value_(parameter, clip_value)
    if cfg.CLIP_TYPE == "norm":
        return lambda parameter: clip_grad_norm_(parameter, clip_value, norm_type)
    raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {cfg.CLIP_TYPE!r} is not supported: expected 'value' or 'norm'")


def _with_clipping(optimizer_class: type[torch.optim.Optimizer], clip: Clipper) -> type[torch.optim.Optimizer]:
    """Derive a class whose optimizers clip gradients before each step."""

    def create(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        optimizer_class.__init__(self, *args, **kwargs)
        _clip_before_steps(self, clip)

    return type(f"{optimizer_class.__name__}WithGradientClip", (optimizer_class,), {"__init__": create})


def _clip_before_steps(optimizer: torch.optim.Optimizer, clip: Clipper) -> None:
    def clip_all(stepping: torch.optim.Optimizer, *_: Any) -> None:
        parameters = itertools.chain.from_iterable(group["params"] for group in stepping.param_groups)
        for parameter in (each for each in parameters if each.grad is not None):
            clip(parameter)

    optimizer.register_step_pre_hook(clip_all)


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: OptimizerOrClass) -> OptimizerOrClass:
    """Add clipping before ``step`` if ``SOLVER.CLIP_GRADIENTS.ENABLED``; otherwise return ``optimizer`` unchanged.

    Args:
        cfg: the whole config.
        optimizer: an optimizer class, or an optimizer, which is modified in place.

    Raises:
        ValueError: ``CLIP_TYPE`` is neither ``value`` nor ``norm``.
    """
    node = cfg.SOLVER.CLIP_GRADIENTS
    if not node.ENABLED:
        return optimizer
    clip = _create_clipper(node)
    if isinstance(optimizer, type):
        return cast(OptimizerOrClass, _with_clipping(optimizer, clip))
    _clip_before_steps(optimizer, clip)
    return optimizer
