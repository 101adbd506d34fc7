import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.gn = nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, 2)
        self.fc2 = nn.Linear(4, 2)
        self.fc2.weight = self.fc.weight  # shared
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1))


def describe(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({k: v for k, v in group.items() if k != "params"}, [names[id(p)] for p in group["params"]]) for group in groups
    ]


# The right-hand sides are results of Detectron2 for the same network.
FC = ["fc.weight", "fc.bias", "fc2.bias"]
ALL = ["scale", "conv.weight", "conv.bias", "bn.weight", "bn.bias", "gn.weight", "gn.bias", *FC]
BIASES = ["conv.bias", "bn.bias", "gn.bias", "fc.bias", "fc2.bias"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [({}, ALL)]),
        ({"base_lr": 0.1, "weight_decay": 0.01}, [({"lr": 0.1, "weight_decay": 0.01}, ALL)]),
        (
            {"base_lr": 0.1, "weight_decay": 0.01, "weight_decay_norm": 0.0},
            [
                (
                    {"lr": 0.1, "weight_decay": 0.01},
                    ["scale", "conv.weight", "conv.bias", "fc.weight", "fc.bias", "fc2.bias"],
                ),
                ({"lr": 0.1, "weight_decay": 0.0}, ["bn.weight", "bn.bias", "gn.weight", "gn.bias"]),
            ],
        ),
        (
            {
                "base_lr": 0.1,
                "weight_decay": 0.01,
                "weight_decay_norm": 0.0,
                "bias_lr_factor": 2.0,
                "weight_decay_bias": 0.5,
            },
            [
                ({"lr": 0.1, "weight_decay": 0.01}, ["scale", "conv.weight", "fc.weight"]),
                ({"lr": 0.2, "weight_decay": 0.5}, BIASES),
                ({"lr": 0.1, "weight_decay": 0.0}, ["bn.weight", "gn.weight"]),
            ],
        ),
        (
            {
                "base_lr": 0.1,
                "bias_lr_factor": 2.0,
                "lr_factor_func": lambda name: 0.5 if "conv" in name else 1.0,
                "overrides": {"scale": {"lr": 3.0, "momentum": 0.5}},
            },
            [
                ({"lr": 3.0, "momentum": 0.5}, ["scale"]),
                ({"lr": 0.05}, ["conv.weight"]),
                ({"lr": 0.2}, BIASES),
                ({"lr": 0.1}, ["bn.weight", "gn.weight", "fc.weight"]),
            ],
        ),
    ],
)
def test_parameter_groups(settings, expected):
    model = Net()
    assert describe(model, get_default_optimizer_params(model, **settings)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"bias_lr_factor": 2.0},
        {"lr_factor_func": lambda name: 0.5},
        {"base_lr": 0.1, "bias_lr_factor": 2.0, "overrides": {"bias": {"lr": 5.0}}},
    ],
)
def test_parameter_groups_refuse_contradictions(settings):
    with pytest.raises(ValueError):
        get_default_optimizer_params(Net(), **settings)


def test_optimizer_follows_the_config():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.3, "SOLVER.MOMENTUM", 0.8, "SOLVER.NESTEROV", True])
    optimizer = build_optimizer(cfg, Net())
    assert type(optimizer) is torch.optim.SGD
    assert [(g["lr"], g["momentum"], g["nesterov"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.3, 0.8, True, 1e-4),
        (0.3, 0.8, True, 0.0),
    ]


def clipping_cfg(clip_type, clip_value=0.5, norm_type=2.0):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 1.0, "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0])
    cfg.SOLVER.CLIP_GRADIENTS.update(
        {"ENABLED": True, "CLIP_TYPE": clip_type, "CLIP_VALUE": clip_value, "NORM_TYPE": norm_type}
    )
    return cfg


@pytest.mark.parametrize(
    ("clip_type", "norm_type", "expected"),
    [
        ("value", 2.0, [[0.5, 0.5], [-0.5, 0.1]]),
        ("norm", 2.0, [[0.13358, 0.26717], [-0.40075, 0.01336]]),
        ("norm", float("inf"), [[0.16667, 0.33333], [-0.5, 0.01667]]),
    ],
)
def test_each_gradient_is_clipped_before_the_step(clip_type, norm_type, expected):
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(clipping_cfg(clip_type, norm_type=norm_type), layer)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.tensor([[1.0, 2.0], [-3.0, 0.1]])  # the bias has no gradient at all
    optimizer.step()
    torch.testing.assert_close(before - layer.weight.detach(), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_clipping_an_optimizer_that_exists_and_a_class():
    layer = nn.Linear(1, 1, bias=False)
    existing = torch.optim.AdamW(layer.parameters(), lr=1.0)
    cfg = clipping_cfg("value", clip_value=0.25)
    assert maybe_add_gradient_clipping(cfg, existing) is existing
    assert isinstance(existing, torch.optim.AdamW)
    layer.weight.grad = torch.ones(1, 1)
    existing.step()
    assert layer.weight.grad.item() == 0.25
    assert maybe_add_gradient_clipping(cfg, torch.optim.AdamW).__name__ == "AdamWWithGradientClip"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert maybe_add_gradient_clipping(cfg, torch.optim.AdamW) is torch.optim.AdamW


def test_unknown_clip_type_is_named():
    with pytest.raises(ValueError, match="full_model"):
        build_optimizer(clipping_cfg("full_model"), Net())


def test_groups_with_equal_settings_are_merged():
    groups = [{"params": [1], "lr": 0.1}, {"params": [2], "lr": 0.2}, {"params": [3], "lr": 0.1}]
    assert reduce_param_groups(groups) == [{"params": [1, 3], "lr": 0.1}, {"params": [2], "lr": 0.2}]


def test_a_parameter_in_several_groups_takes_the_settings_of_the_last():
    groups = [{"params": ["a", "b"], "lr": 1.0, "weight_decay": 0.1}, {"params": ["b"], "lr": 2.0}]
    assert reduce_param_groups(groups) == [
        {"params": ["a"], "lr": 1.0, "weight_decay": 0.1},
        {"params": ["b"], "lr": 2.0, "weight_decay": 0.1},
    ]
    assert reduce_param_groups([]) == []
