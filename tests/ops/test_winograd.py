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


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (13, 30), (50, 76)])
@pytest.mark.parametrize(("images", "channels", "dim"), [(1, 8, 16), (3, 16, 8)])
def test_gradients_equal_those_of_a_direct_convolution_in_float64(images, channels, dim, size):
    generator = torch.Generator().manual_seed(0)
    shapes = (images, channels, *size), (dim, channels, 3, 3), (dim,)
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    grad = torch.randn(images, dim, *size, generator=generator)
    out = winograd.conv3x3(inputs[0].to(memory_format=torch.channels_last), *inputs[1:])
    actual = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(F.conv2d(*exact, padding=1), exact, grad.double())
    assert all(_relative_error(a, b) < 5e-6 for a, b in zip(actual, expected, strict=True))
    repeated = torch.autograd.grad(out, inputs, grad)
    assert all(torch.equal(a, b) for a, b in zip(actual, repeated, strict=True))


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_gradient_of_a_single_input(needed):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 8, 9, 11).to(memory_format=torch.channels_last), torch.randn(4, 8, 3, 3), torch.randn(4)]
    inputs[needed].requires_grad_()
    (actual,) = torch.autograd.grad(winograd.conv3x3(*inputs).square().sum(), [inputs[needed]])
    (expected,) = torch.autograd.grad(F.conv2d(*inputs, padding=1).square().sum(), [inputs[needed]])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-2)


def test_gradient_of_a_gradient():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 5).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, 8, 3, 3, requires_grad=True)
    second = []
    for out in (winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1)):
        (grad,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert _relative_error(second[0], second[1].double()) < 1e-5


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_with_relu(grad, with_bias):
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 11).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(4, 8, 3, 3), torch.randn(4) if with_bias else None
    actual = winograd.conv3x3(x, weight.requires_grad_(grad), bias, relu=True)
    assert actual.requires_grad == grad
    torch.testing.assert_close(actual, F.conv2d(x, weight, bias, padding=1).relu(), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("norm", ["", "FrozenBN", "BN"])
def test_in_the_training_of_a_layer(norm):
    torch.manual_seed(0)
    conv = ConvNorm(128, 128, 3, norm=norm, relu=True).train().to(memory_format=torch.channels_last)
    x = torch.randn(2, 128, 40, 62).to(memory_format=torch.channels_last).requires_grad_()
    gradients = []
    for conv.winograd_in_training in (True, False):
        inputs = [x, *conv.parameters()]
        gradients.append(torch.autograd.grad(conv(x, residual=x).square().mean(), inputs))
    for fast, direct in zip(*gradients, strict=True):
        assert not (IS_X86 and torch.equal(fast, direct))
        assert _relative_error(fast, direct.double()) < 1e-4  # a few elements are on the other side of the ReLU
