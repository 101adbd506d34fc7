import copy
import pickle

import pytest
import torch

from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from detectron2.layers import FrozenBatchNorm2d


@pytest.fixture(params=[True, False], ids=["cached", "not cached"])
def keep_folded(request, monkeypatch):
    monkeypatch.setattr(ConvNorm, "keep_folded", request.param)
    return request.param


def random_layer(norm, relu=False, **options):
    torch.manual_seed(0)
    layer = ConvNorm(4, 32, 3, norm=norm, relu=relu, **options)
    if norm in ("BN", "FrozenBN"):
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.5, 2.0)
        with torch.no_grad():
            layer.norm.weight.normal_(1.0, 0.2)
            layer.norm.bias.normal_()
    return layer


def by_hand(layer, x, residual=None):
    """Compute the layer's steps separately."""
    x = torch.nn.functional.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    x = x if layer.norm is None else layer.norm(x)
    x = x if residual is None else x + residual
    return x.relu() if layer.relu else x


def count_folds(run):
    """Return how often ``run`` folds a norm: folding alone takes a reciprocal square root."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::rsqrt")


@pytest.mark.parametrize("norm", ["", "FrozenBN", "BN", "GN"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_same_as_separate_steps(norm, relu, grad):
    layer = random_layer(norm, relu, stride=2).eval()
    x = torch.randn(2, 4, 9, 7)
    residual = torch.randn(2, 32, 5, 4)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            layer(x, residual=residual.clone()), by_hand(layer, x, residual), rtol=1e-5, atol=1e-5
        )
    assert layer.bias is None if norm else layer.bias is not None


def test_dilation_and_groups_keep_the_size():
    layer = ConvNorm(4, 8, 3, dilation=2, groups=2, norm="BN").eval()
    assert layer(torch.zeros(1, 4, 6, 5)).shape == (1, 8, 6, 5)


def change_by_loading(layer):
    layer.load_state_dict({name: tensor * 1.5 for name, tensor in layer.state_dict().items()})


def change_by_optimizer(layer):
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD([layer.weight], lr=0.1).step()


def change_by_replacing(layer):
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 2)


def change_statistics(layer):
    layer.norm.running_mean.add_(1.0)


def change_by_training(layer):
    layer.train()(torch.randn(2, 4, 5, 5))
    layer.eval()


def change_by_dtype(layer):
    layer.double().float()
    layer.weight.data.mul_(2)  # raises no version counter, but `double` has cleared the cache


@pytest.mark.parametrize(
    "change",
    [
        change_by_loading,
        change_by_optimizer,
        change_by_replacing,
        change_statistics,
        change_by_training,
        change_by_dtype,
    ],
)
def test_folded_weights_follow_the_weights(change, keep_folded):
    layer = random_layer("BN").eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        before = layer(x)
    change(layer)
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(after, by_hand(layer, x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, after)


def test_weights_are_folded_once(keep_folded):
    layer, x = random_layer("FrozenBN").eval(), torch.zeros(1, 4, 5, 5)
    with torch.no_grad():
        layer(x)
        assert count_folds(lambda: layer(x)) == (0 if keep_folded else 1)
        layer.train().eval()
        assert count_folds(lambda: layer(x)) == 1


def test_frozen_layers_are_folded_in_training(monkeypatch):
    monkeypatch.setattr(ConvNorm, "keep_folded", True)
    layer, x = random_layer("FrozenBN").requires_grad_(False).train(), torch.zeros(1, 4, 5, 5)
    assert count_folds(lambda: layer(x)) == 1
    assert count_folds(lambda: layer(x)) == 0


def test_not_cached_on_cpus_by_default():
    layer, x = random_layer("FrozenBN").eval(), torch.zeros(1, 4, 5, 5)
    with torch.no_grad():
        layer(x)
        assert count_folds(lambda: layer(x)) == 1


def test_inference_mode(keep_folded):
    layer = random_layer("FrozenBN").eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        inside = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), inside.clone(), rtol=0, atol=0)
    x.requires_grad_()
    layer(x).sum().backward()  # must not use weights that were folded in inference mode
    assert layer.weight.grad is not None
    with torch.inference_mode():
        inference_layer = random_layer("FrozenBN").eval()  # its tensors have no version counters
        inference_layer(x)
        assert count_folds(lambda: inference_layer(x.detach())) == 1


def test_copies_do_not_carry_folded_weights(monkeypatch):
    monkeypatch.setattr(ConvNorm, "keep_folded", True)
    layer = random_layer("FrozenBN").eval()
    x, size = torch.randn(1, 4, 5, 5), len(pickle.dumps(layer))
    with torch.no_grad():
        expected = layer(x)
        assert len(pickle.dumps(layer)) == size
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert count_folds(lambda twin=twin: twin(x)) == 1
            assert torch.equal(twin(x), expected)
    assert list(layer.state_dict()) == ["weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]


@pytest.mark.parametrize("norm", ["", "FrozenBN", "BN", "GN"])
def test_empty_batches_give_zero_gradients(norm):
    layer = random_layer(norm, relu=True).train()
    layer(torch.zeros(0, 4, 5, 5)).sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() == 0


def test_conversion_to_frozen_norm():
    layer = random_layer("BN").eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        expected = layer(x)
        FrozenBatchNorm2d.convert_frozen_batchnorm(layer)
        assert isinstance(layer.norm, FrozenBatchNorm2d)
        torch.testing.assert_close(layer.train()(x), expected, rtol=1e-5, atol=1e-6)


def test_gradients():
    for norm in ("", "FrozenBN", "BN"):
        layer = random_layer(norm, relu=True).double().eval()
        x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        residual = torch.randn(1, 32, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, r, layer=layer: layer(x, residual=r), (x, residual))
