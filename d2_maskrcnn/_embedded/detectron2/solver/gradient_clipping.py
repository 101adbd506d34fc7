"""Optimizers that clip the gradient of each parameter before a step."""

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
    class OptimizerWithGradientClip(optimizer_class):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        clip(parameter)
            return super().step(closure)

    name = f"{optimizer_class.__name__}WithGradientClip"
    OptimizerWithGradientClip.__name__ = OptimizerWithGradientClip.__qualname__ = name
    return OptimizerWithGradientClip


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: OptimizerOrClass) -> OptimizerOrClass:
    """Add clipping before ``step`` if ``SOLVER.CLIP_GRADIENTS.ENABLED``; otherwise return ``optimizer`` unchanged.

    Args:
        cfg: the whole config.
        optimizer: an optimizer class, or an optimizer, which is modified in place.

    Raises:
        ValueError: ``CLIP_TYPE`` is neither ``value`` nor ``norm``.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clip = _create_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.__class__ = _with_clipping(type(optimizer), clip)  # type: ignore[assignment]
        return optimizer
    return cast(OptimizerOrClass, _with_clipping(optimizer, clip))
