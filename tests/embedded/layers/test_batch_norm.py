import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import FrozenBatchNorm2d, LayerNorm, NaiveSyncBatchNorm, get_norm


def filled(channels=6):
    layer = FrozenBatchNorm2d(channels, eps=1e-3)
    for buffer in layer.buffers():
        buffer.uniform_(0.1, 2.0)
    return layer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_frozen_equals_batch_norm(batch, memory_format):
    layer = filled()
    x = torch.randn(batch, 6, 5, 4).contiguous(memory_format=memory_format)
    expected = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    with_gradient = x.clone().requires_grad_()
    actual = layer(with_gradient)
    torch.testing.assert_close(actual.detach(), expected)
    assert actual.is_contiguous(memory_format=memory_format)
    with torch.no_grad():
        torch.testing.assert_close(layer(with_gradient), expected, rtol=0, atol=0)


def test_frozen_gradient():
    layer = filled().double()
    x = torch.randn(2, 6, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


def test_frozen_backward_does_not_keep_its_input():
    """What makes frozen layers cheap in training: only the (C,) scale is saved."""
    saved = []
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda packed: packed):
        filled()(x)
    assert saved and max(saved) < x.numel()


def test_frozen_in_half_precision():
    x = torch.randn(2, 6, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    layer = filled()
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).float(), layer(x.float()), rtol=0.03, atol=0.05)


def test_fresh_frozen_layer_is_the_identity():
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(FrozenBatchNorm2d(6)(x), x)
    assert not list(FrozenBatchNorm2d(6).parameters())
    assert set(FrozenBatchNorm2d(6).state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("affine", [True, False])
def test_conversion(affine):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=1e-2, affine=affine), nn.ReLU()))
    model(torch.randn(8, 3, 4, 4))  # moves the running statistics
    model.eval()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x).detach()
    converted = FrozenBatchNorm2d.convert_frozen_batchnorm(model)
    assert converted is model
    assert isinstance(model[1][0], FrozenBatchNorm2d) and model[1][0].eps == 1e-2
    torch.testing.assert_close(model.train()(x).detach(), expected)


def test_conversion_of_a_single_layer():
    batch_norm = nn.BatchNorm2d(3)
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(batch_norm)
    assert isinstance(frozen, FrozenBatchNorm2d)
    with torch.no_grad():
        batch_norm.weight.fill_(5.0)
    assert frozen.weight.tolist() == [1.0, 1.0, 1.0]  # no memory is shared
    with pytest.raises(ValueError, match="running statistics"):
        FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(3, track_running_stats=False))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", type(None)),
        (None, type(None)),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", LayerNorm),
        (nn.InstanceNorm2d, nn.InstanceNorm2d),
        (lambda channels: nn.GroupNorm(4, channels), nn.GroupNorm),
    ],
)
def test_get_norm(name, kind):
    layer = get_norm(name, 32)
    assert isinstance(layer, kind)
    if layer is not None:
        assert layer.train()(torch.randn(2, 32, 3, 3)).shape == (2, 32, 3, 3)


def test_get_norm_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"'bn'.*FrozenBN"):
        get_norm("bn", 8)
    with pytest.raises(ValueError, match="32"):
        get_norm("GN", 20)


def test_layer_norm_is_over_channels():
    layer = LayerNorm(5)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    x = torch.randn(2, 5, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (5,), layer.weight, layer.bias, 1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["SyncBN", "naiveSyncBN"])
def test_synchronised_norm_in_one_process_is_batch_norm(name):
    layer, plain = get_norm(name, 4), nn.BatchNorm2d(4)
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.running_var, plain.running_var)
