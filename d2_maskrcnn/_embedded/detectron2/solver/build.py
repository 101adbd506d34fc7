"""Build optimizers: SGD over groups of parameters, with gradient clipping."""

import torch

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.solver.gradient_clipping import maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import build_lr_scheduler
from detectron2.solver.parameter_groups import (
    _expand_param_groups,  # noqa: F401 - Detectron2's module has it, too
    get_default_optimizer_params,
    reduce_param_groups,
)

__all__ = [
    "build_lr_scheduler",
    "build_optimizer",
    "get_default_optimizer_params",
    "maybe_add_gradient_clipping",
    "reduce_param_groups",
]


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Build SGD with momentum for the trainable parameters, clipped if ``SOLVER.CLIP_GRADIENTS.ENABLED``."""
    rates = ("base_lr", "bias_lr_factor", "weight_decay", "weight_decay_norm", "weight_decay_bias")
    groups = get_default_optimizer_params(model, **{name: cfg.SOLVER[name.upper()] for name in rates})
    optimizer_class = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    return optimizer_class(
        groups,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )


__getattr__ = lookup(__name__)
