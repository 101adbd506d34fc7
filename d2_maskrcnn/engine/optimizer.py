"""Optimisers from config: SGD as Detectron2 builds it, or AdamW over the same groups of parameters."""

import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping

OPTIMIZERS = ("SGD", "AdamW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that ``D2_MASKRCNN.SOLVER.OPTIMIZER`` names, with the rates, decays and clipping of ``SOLVER``.

    AdamW is Loshchilov and Hutter, "Decoupled weight decay regularization" (2019): there, the decay of a step is the
    learning rate times ``SOLVER.WEIGHT_DECAY``, so values around 0.05 are usual, a thousand times those of SGD.
    Normalisation weights get ``WEIGHT_DECAY_NORM`` and biases ``WEIGHT_DECAY_BIAS``, as with SGD.

    Raises:
        UserError: the name is not one of ``OPTIMIZERS``.
    """
    name = cfg.D2_MASKRCNN.SOLVER.OPTIMIZER
    if name == "SGD":
        return build_sgd(cfg, model)
    if name == "AdamW":
        groups = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
    raise UserError(f"D2_MASKRCNN.SOLVER.OPTIMIZER = {name!r}; expected one of {', '.join(OPTIMIZERS)}.")
