"""Learning rate and weight decay of each parameter."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

# Their weights scale normalized features and usually have a weight decay of their own (SOLVER.WEIGHT_DECAY_NORM).
NORM_TYPES = (
    nn.modules.batchnorm._BatchNorm,  # BatchNorm1d, 2d, 3d and SyncBatchNorm
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)

ParamGroup = dict[str, Any]


def get_default_optimizer_params(
    model: nn.Module,
    base_lr: float | None = None,
    weight_decay: float | None = None,
    weight_decay_norm: float | None = None,
    bias_lr_factor: float | None = 1.0,
    weight_decay_bias: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[ParamGroup]:
    """Group the trainable parameters of ``model`` by their hyperparameters, for a PyTorch optimizer.

    None leaves a value to the optimizer's default. A parameter that several modules share occurs once. Settings for
    biases have precedence over those for normalization layers.

    Args:
        model: its parameters with ``requires_grad`` are grouped.
        base_lr, weight_decay: of all groups. weight_decay_norm: of the parameters of normalization layers.
        bias_lr_factor, weight_decay_bias: factor of ``base_lr`` and weight decay of parameters named ``bias``.
        lr_factor_func: full parameter name -> factor of ``base_lr`` (layer-wise learning rates).
        overrides: last part of a parameter's name -> settings that have precedence over all others,
            e.g. ``{"embedding": {"lr": 0.01, "weight_decay": 0.1}}``.

    Raises:
        ValueError: a factor is given without ``base_lr``, or both ``overrides["bias"]`` and a setting for biases.
    """
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")
    overrides = _add_bias_settings(overrides or {}, base_lr, bias_lr_factor, weight_decay_bias)
    defaults = _without_none({"lr": base_lr, "weight_decay": weight_decay})
    groups: list[ParamGroup] = []
    for module, full_name, parameter in _trainable_parameters(model):
        settings = dict(defaults)
        if isinstance(module, NORM_TYPES) and weight_decay_norm is not None:
            settings["weight_decay"] = weight_decay_norm
        if lr_factor_func is not None:
            settings["lr"] *= lr_factor_func(full_name)
        settings.update(overrides.get(full_name.rpartition(".")[2], {}))
        groups.append({"params": [parameter], **settings})
    return reduce_param_groups(groups)


def _expand_param_groups(params: list[ParamGroup]) -> list[ParamGroup]:
    """Return one group per parameter; if a parameter is in several groups, the settings of the last have precedence."""
    expanded: dict[Any, ParamGroup] = {}
    for group in params:
        settings = {name: value for name, value in group.items() if name != "params"}
        for parameter in group["params"]:
            expanded.setdefault(parameter, {"params": [parameter]}).update(settings)
    return list(expanded.values())


def reduce_param_groups(params: list[ParamGroup]) -> list[ParamGroup]:
    """Merge the parameter groups with equal settings; optimizers are faster with fewer groups."""
    merged: dict[frozenset[tuple[str, Any]], ParamGroup] = {}
    for group in _expand_param_groups(params):
        settings = {name: value for name, value in group.items() if name != "params"}
        merged.setdefault(frozenset(settings.items()), {**settings, "params": []})["params"] += group["params"]
    return list(merged.values())


def _without_none(settings: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in settings.items() if value is not None}


def _add_bias_settings(
    overrides: dict[str, dict[str, float]],
    base_lr: float | None,
    bias_lr_factor: float | None,
    weight_decay_bias: float | None,
) -> dict[str, dict[str, float]]:
    """Return ``overrides`` with the settings of biases as an override of the name ``bias``."""
    bias: dict[str, float | None] = {"weight_decay": weight_decay_bias}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor needs base_lr")
        bias["lr"] = base_lr * bias_lr_factor
    settings = _without_none(bias)
    if not settings:
        return overrides
    if "bias" in overrides:
        raise ValueError(
            f"overrides['bias'] = {overrides['bias']} conflicts with the other settings for biases: {settings}"
        )
    return {**overrides, "bias": settings}


def _trainable_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.nn.Parameter]]:
    """Yield (owner, full name, parameter), each parameter once, in the order of the modules."""
    seen: set[torch.nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module, f"{module_name}.{name}" if module_name else name, parameter
