import pytest
import torch
import torch.nn.functional as F

from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.ops import winograd

IS_X86 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 30), (50, 76)])
@pytest.mark.parametrize(("images", "channels", "dim"), [(1, 8, 16), (3, 16, 8)])
@torch.no_grad()
def test_equals_a_direct_convolution_in_float64(images, channels, dim, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, *size, generator=generator)
    weight, bias = torch.randn(dim, channels, 3, 3, generator=generator), torch.randn(dim, generator=generator)
    actual = winograd.conv3x3(x.to(memory_format=torch.channels_last), weight, bias)
    assert actual.shape == (images, dim, *size)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert _relative_error(actual, F.conv2d(x.double(), weight.double(), bias.double(), padding=1)) < 5e-6


@torch.no_grad()
def test_many_small_images_and_no_bias():
    x = torch.randn(100, 128, 14, 14).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3)
    actual = winograd.conv3x3(x, weight)
    assert _relative_error(actual, F.conv2d(x.double(), weight.double(), padding=1)) < 5e-6


@torch.no_grad()
def test_the_kernel_that_copies_its_input_is_exact_to_rounding():
    weight = torch.zeros(2, 2, 3, 3)
    weight[0, 0, 1, 1] = weight[1, 1, 1, 1] = 1
    x = torch.arange(2 * 6 * 9, dtype=torch.float32).view(1, 2, 6, 9)
    torch.testing.assert_close(winograd.conv3x3(x, weight), x, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not IS_X86, reason="Winograd's algorithm is used on x86 processors")
def test_used_only_where_it_applies():
    x = torch.zeros(1, 128, 64, 64).to(memory_format=torch.channels_last)
    weight = torch.zeros(128, 128, 3, 3)
    assert not winograd.is_faster(x, weight)  # a gradient may be needed
    with torch.no_grad():
        assert winograd.is_faster(x, weight)
        assert not winograd.is_faster(x[:, :, :0], weight)
        assert not winograd.is_faster(x[:, :, :16, :16].contiguous(memory_format=torch.channels_last), weight)
        assert not winograd.is_faster(x.contiguous(), weight)  # not channels-last
        assert not winograd.is_faster(x.bfloat16(), weight.bfloat16())
        assert not winograd.is_faster(x, torch.zeros(128, 128, 1, 1))
        assert not winograd.is_faster(x[:, :64].contiguous(memory_format=torch.channels_last), weight[:, :64])
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd.is_faster(x, weight)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}])
@torch.no_grad()
def test_other_convolutions_stay_direct(options):
    conv = ConvNorm(256, 256, 3, **options).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 64, 64).to(memory_format=torch.channels_last)
    expected = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert conv(x).equal(expected)


@pytest.mark.parametrize("norm", ["", "FrozenBN", "GN"])
@torch.no_grad()
def test_in_a_layer_with_norm_and_relu(norm):
    torch.manual_seed(0)
    conv = ConvNorm(128, 128, 3, norm=norm, relu=True).eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 128, 40, 62).to(memory_format=torch.channels_last)
    fast = conv(x)
    conv.winograd = False
    torch.testing.assert_close(fast, conv(x), rtol=1e-4, atol=1e-5)
