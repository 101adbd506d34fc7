import pytest
import torch
from torch import nn

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.engine.optimizer import build_optimizer
from d2_maskrcnn.errors import UserError


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def settings(optimizer, *opts):
    return load_config("", ["D2_MASKRCNN.SOLVER.OPTIMIZER", optimizer, *opts])


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_kind_and_groups(name, kind):
    opts = ["SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.WEIGHT_DECAY_NORM", "0.25", "SOLVER.WEIGHT_DECAY_BIAS", "0.0"]
    net = model()
    optimizer = build_optimizer(settings(name, *opts), net)
    assert isinstance(optimizer, kind)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(net[0].weight)] == 0.5 and decay[id(net[3].weight)] == 0.5
    assert decay[id(net[1].weight)] == 0.25
    assert decay[id(net[0].bias)] == 0.0
    assert len(decay) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_clipping(name):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1e-3"]
    net = model()
    optimizer = build_optimizer(settings(name, *clip), net)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    assert max(float(p.grad.abs().max()) for p in net.parameters()) <= 1e-3 * 1.0001


def test_unknown_name():
    with pytest.raises(UserError, match="'Lion'; expected one of SGD, AdamW"):
        build_optimizer(settings("Lion"), model())
