import pytest
import torch
import torch.nn.functional as F
from torch import nn

from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.ops import onednn

HAS_ONEDNN = torch.backends.mkldnn.is_available()
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this build of PyTorch has no oneDNN")
GEOMETRIES = [{}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 4}, {"kernel_size": 1, "padding": 0}]


def _random(*shape, dtype=torch.float32):
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def test_does_not_apply_to_an_empty_batch():
    layer = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    assert not onednn.is_supported(torch.zeros(0, 8, 5, 5), layer.weight.detach())


def test_the_check_at_first_use_draws_no_random_numbers():
    x, weight = _random(1, 8, 5, 5), _random(8, 8, 1, 1)
    onednn._works.cache_clear()
    before = torch.get_rng_state()
    onednn.is_supported(x, weight)
    assert torch.equal(torch.get_rng_state(), before)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@torch.no_grad()
def test_equals_separate_steps(dtype, geometry):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, **{"kernel_size": 3, "padding": 1, **geometry}).to(memory_format=torch.channels_last)
    x, weight, bias = _random(2, 8, 9, 13, dtype=dtype), layer.weight.to(dtype), layer.bias.to(dtype)
    if not onednn.is_supported(x, weight, bias):
        assert dtype is torch.bfloat16
        pytest.skip("this processor has no bfloat16 instructions")
    args = layer.stride, layer.padding, layer.dilation, layer.groups
    plain = F.conv2d(x.float(), weight.float(), bias.float(), *args)
    residual = _random(*plain.shape, dtype=dtype)
    kept = residual.clone()
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for relu in (False, True):
        finish = torch.relu if relu else torch.clone
        actual = onednn.conv2d(x, weight, bias, layer, relu=relu)
        assert actual.dtype == dtype and actual.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(actual.float(), finish(plain), **exact)
        expected = finish(plain + residual.float())
        torch.testing.assert_close(onednn.conv2d(x, weight, bias, layer, residual, relu).float(), expected, **exact)
        assert residual.equal(kept)
        target = residual.clone()
        actual = onednn.conv2d(x, weight, bias, layer, target, relu, overwrite=True)
        assert (actual.data_ptr() == target.data_ptr()) == (layer.groups == 1)
        torch.testing.assert_close(actual.float(), expected, **exact)


@needs_onednn
def test_applies_only_without_gradients_in_channels_last_order():
    x, weight = _random(1, 8, 5, 5), _random(16, 8, 3, 3)
    assert onednn.is_supported(x, weight, None)
    assert not onednn.is_supported(x.contiguous(), weight, None)
    assert not onednn.is_supported(x.double(), weight.double(), None)
    assert not onednn.is_supported(x, weight.bfloat16(), None)
    assert not onednn.is_supported(x, weight.requires_grad_(), None)
    with torch.no_grad():
        assert onednn.is_supported(x, weight, None)
        with torch.autocast("cpu", torch.bfloat16):
            assert not onednn.is_supported(x, weight, None)


@pytest.mark.parametrize("broken", ["missing", "raises", "differs"])
@torch.no_grad()
def test_separate_steps_where_the_operators_do_not_work(monkeypatch, broken):
    class Operators:
        def _convolution_pointwise(self, x, weight, bias, *args):
            if broken == "raises":
                raise RuntimeError("could not create a primitive")
            return F.conv2d(x, weight, bias, padding=1)  # without the ReLU

    torch.manual_seed(0)
    conv = ConvNorm(8, 16, 3, relu=True).to(memory_format=torch.channels_last)
    x, residual = _random(1, 8, 6, 7), _random(1, 16, 6, 7)
    expected = conv(x, residual)
    onednn._works.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", object() if broken == "missing" else Operators())
    assert not onednn.is_supported(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x, residual), expected)
    onednn._works.cache_clear()


@torch.no_grad()
def test_switched_off_with_onednn(monkeypatch):
    conv = ConvNorm(8, 16, 3, relu=True).to(memory_format=torch.channels_last)
    x = _random(1, 8, 6, 7)
    expected = conv(x)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not onednn.is_supported(x, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), expected)
