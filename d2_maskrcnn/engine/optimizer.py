"""Build the optimizer from the config, and scale the learning rate with the batch size."""

import logging
import math
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import check_value
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``D2_MASKRCNN.SOLVER.OPTIMIZER`` with the learning rates, weight decays and clipping of ``SOLVER``.

    SGD is Detectron2's. AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") multiplies
    ``SOLVER.WEIGHT_DECAY`` by the learning rate, so typical values are around 0.05, much larger than for SGD.
    Normalization weights get ``WEIGHT_DECAY_NORM`` and biases ``WEIGHT_DECAY_BIAS``, as with SGD. Both run as one
    fused kernel per group of parameters where the device has it: on CPUs and CUDA.

    Raises:
        UserError: there is no such optimizer.
    """
    name = cfg.D2_MASKRCNN.SOLVER.OPTIMIZER
    check_value("D2_MASKRCNN.SOLVER.OPTIMIZER", name, default="SGD")
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    options = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    if all(p.device.type in ("cpu", "cuda") for p in model.parameters()):
        options["fused"] = True
    if name == "AdamW":
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(groups, **options)
    options |= {"momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    optimizer: torch.optim.Optimizer = maybe_add_gradient_clipping(cfg, torch.optim.SGD)(groups, **options)
    start_momenta(optimizer)
    return optimizer


def start_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter of a fused SGD that has no momentum a momentum of 0; the first update is the same.

    PyTorch's fused SGD allocates momenta without values, and never sets them if the gradient scaler skips the first
    step. It also fails if some parameters get their first gradient later than others.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def adapt_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Adapt a saved state to the implementation of ``optimizer`` and to the memory format of its parameters.

    Fused kernels need a step counter on the device, which ``load_state_dict`` moves only for groups that are fused. On
    a CPU they also assume, without checking it, that parameters and state have the same strides.

    Args:
        optimizer: will load the result. state: of the same kind of optimizer, not modified; returned as it is if it
            has another number of groups, which ``load_state_dict`` refuses.
    """
    groups, own = state["param_groups"], optimizer.param_groups
    if len(groups) != len(own):
        return state
    groups = [{**saved, **_implementation(group)} for saved, group in zip(groups, own, strict=True)]
    indices = [index for group in groups for index in group["params"]]
    parameters = [parameter for group in own for parameter in group["params"]]
    values = dict(state["state"])
    for index, parameter in zip(indices, parameters, strict=False):
        if isinstance(values.get(index), dict):
            values[index] = {key: _with_strides(value, parameter) for key, value in values[index].items()}
    return {**state, "param_groups": groups, "state": values}


def _implementation(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in ("fused", "foreach") if key in group}


def _with_strides(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def scale_learning_rate(cfg: CfgNode) -> CfgNode:
    """Scale ``SOLVER.BASE_LR`` from the batch size it was chosen for to ``SOLVER.IMS_PER_BATCH``.

    SGD scales linearly (Goyal et al. 2017, "Accurate, large minibatch SGD", section 2.1), AdamW with the square root
    (Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms", section 4.2).

    Args:
        cfg: not modified; ``D2_MASKRCNN.SOLVER.REFERENCE_BATCH`` is the batch size of ``BASE_LR``, 0 for no scaling.

    Returns:
        ``cfg`` itself if nothing is scaled, else a frozen copy whose reference is its batch size.

    Raises:
        UserError: the reference is negative.
    """
    reference, batch = cfg.D2_MASKRCNN.SOLVER.REFERENCE_BATCH, cfg.SOLVER.IMS_PER_BATCH
    check_value("D2_MASKRCNN.SOLVER.REFERENCE_BATCH", reference, default=0)
    if reference in (0, batch):
        return cfg
    ratio = batch / reference
    factor = math.sqrt(ratio) if cfg.D2_MASKRCNN.SOLVER.OPTIMIZER == "AdamW" else ratio
    scaled = cfg.clone()
    scaled.defrost()
    scaled.SOLVER.BASE_LR = cfg.SOLVER.BASE_LR * factor
    scaled.D2_MASKRCNN.SOLVER.REFERENCE_BATCH = batch
    scaled.freeze()
    logger.info(
        "SOLVER.BASE_LR %g was chosen for batches of %d: scaled by %.4g to %g for batches of %d",
        cfg.SOLVER.BASE_LR,
        reference,
        factor,
        scaled.SOLVER.BASE_LR,
        batch,
    )
    return scaled
