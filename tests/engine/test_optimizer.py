import copy
import itertools
import logging

import pytest
import torch
from torch import nn

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.engine.optimizer import adapt_state, build_optimizer, scale_learning_rate
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


def updated(net, optimizer, steps, state=None):
    """Return the weights after some steps with fixed gradients, and the optimizer's state."""
    if state is not None:
        optimizer.load_state_dict(adapt_state(optimizer, copy.deepcopy(state)))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in net.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)  # in the memory format of the parameter
        optimizer.step()
    weights = [p.detach().clone(memory_format=torch.contiguous_format) for p in net.parameters()]
    return weights, copy.deepcopy(optimizer.state_dict())


def plain(name, net):
    """Return the optimizer with PyTorch's plain implementation, a loop over the parameters."""
    optimizer = build_optimizer(settings(name, *RATES), net)
    for group in optimizer.param_groups:
        group.update(fused=False, foreach=False)
    return optimizer


RATES = ["SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.5", "SOLVER.MOMENTUM", "0.9"]


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_fused_updates_equal_those_of_plain_pytorch(name):
    net, reference = model(), model()
    optimizer = build_optimizer(settings(name, *RATES), net)
    assert all(group["fused"] for group in optimizer.param_groups)
    expected, _ = updated(reference, plain(name, reference), 3)
    for own, value in zip(updated(net, optimizer, 3)[0], expected, strict=True):
        torch.testing.assert_close(own, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("formats", [*itertools.permutations((torch.contiguous_format, torch.channels_last))])
def test_a_state_of_another_implementation_and_memory_format(name, formats):
    """Without adapt_state, a fused kernel on a CPU mixes up the momenta of a convolution in another memory format."""
    before, after = (model().to(memory_format=memory_format) for memory_format in formats)
    weights, state = updated(before, plain(name, before), 2)
    after.load_state_dict(before.state_dict())
    optimizer = build_optimizer(settings(name, *RATES), after)
    own, _ = updated(after, optimizer, 1, state)
    assert all(group["fused"] for group in optimizer.param_groups)
    expected, _ = updated(before, plain(name, before), 1, state)
    assert not torch.equal(expected[0], weights[0])
    for value, reference in zip(own, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_skipped_first_step_leaves_no_trace(name):
    """The gradient scaler skips steps with infinite gradients, in float16 often the first ones."""
    weights = []
    for gradients in ([1.0], [float("inf"), 1.0]):
        net = model()
        optimizer = build_optimizer(settings(name, *RATES), net)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for value in gradients:
            scaler.scale(torch.ones(()))
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, value * scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        weights.append([parameter.detach() for parameter in net.parameters()])
    assert all(torch.equal(once, skipped) for once, skipped in zip(*weights, strict=True))


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_parameter_may_get_its_first_gradient_later(name):
    nets = [model(), model()]
    for net, optimizer in (
        (nets[0], build_optimizer(settings(name, *RATES), nets[0])),
        (nets[1], plain(name, nets[1])),
    ):
        for used in ([net[0].weight], [net[0].weight, net[3].weight]):
            for parameter in used:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    for own, expected in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-7)


def test_a_state_of_other_groups_is_left_to_pytorch():
    net = model()
    state = torch.optim.SGD([{"params": [p]} for p in net.parameters()], lr=0.1).state_dict()
    optimizer = build_optimizer(settings("SGD", *RATES), net)
    assert adapt_state(optimizer, state) is state
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(state)


def test_unknown_name():
    with pytest.raises(UserError, match="'Lion'; expected one of 'SGD', 'AdamW'"):
        build_optimizer(settings("Lion"), model())


@pytest.mark.parametrize(
    ("optimizer", "reference", "factor"),
    [("SGD", 0, 1.0), ("SGD", 2, 1.0), ("SGD", 16, 1 / 8), ("SGD", 1, 2.0), ("AdamW", 8, 0.5)],
)
def test_scaling_factor(tiny_cfg, caplog, optimizer, reference, factor):
    cfg = tiny_cfg(
        "SOLVER.BASE_LR", 0.02, "SOLVER.IMS_PER_BATCH", 2,
        "D2_MASKRCNN.SOLVER.OPTIMIZER", optimizer, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", reference,
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        scaled = scale_learning_rate(cfg)
    assert pytest.approx(0.02 * factor) == scaled.SOLVER.BASE_LR
    assert scaled.is_frozen() and cfg.SOLVER.BASE_LR == 0.02
    assert scale_learning_rate(scaled) is scaled
    assert ("was chosen for batches of" in caplog.text) == (factor != 1.0)


def test_the_optimizer_uses_the_scaled_rate(trainer_of):
    trainer = trainer_of("SOLVER.BASE_LR", 0.02, "D2_MASKRCNN.SOLVER.REFERENCE_BATCH", 8, "SOLVER.WARMUP_ITERS", 0)
    assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.01)


def test_negative_reference(tiny_cfg):
    with pytest.raises(UserError, match="REFERENCE_BATCH is -1"):
        scale_learning_rate(tiny_cfg("D2_MASKRCNN.SOLVER.REFERENCE_BATCH", -1))
