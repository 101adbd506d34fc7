import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detectron2.layers import (
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    move_device_like,
    nonzero_tuple,
)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_convolution_is_followed_by_norm_and_activation(batch):
    layer = Conv2d(3, 4, 3, stride=2, padding=1, bias=False, norm=nn.BatchNorm2d(4).eval(), activation=F.relu)
    layer.norm.running_mean.uniform_()
    x = torch.randn(batch, 3, 8, 6)
    expected = F.relu(layer.norm(F.conv2d(x, layer.weight, stride=2, padding=1)))
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape == (batch, 4, 4, 3)
    assert {"weight", "norm.weight", "norm.running_var"} < set(layer.state_dict())


def test_plain_convolution():
    layer = Conv2d(3, 4, kernel_size=1)
    x = torch.randn(2, 3, 5, 5)
    assert layer.norm is None and layer.activation is None
    assert set(layer.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_cat():
    one, two = torch.ones(1, 2), torch.zeros(2, 2)
    assert cat([one]) is one
    assert cat((one, two)).shape == (3, 2)
    assert cat([one, one], dim=1).shape == (1, 4)
    with pytest.raises(ValueError, match="Tensor"):
        cat(one)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2)])
def test_cross_entropy_of_nothing_is_zero(shape):
    logits = torch.zeros(shape, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, *shape[2:], dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(reduction):
    logits, target = torch.randn(4, 3), torch.tensor([0, 2, 1, 0])
    weight = torch.tensor([1.0, 2.0, 3.0])
    actual = cross_entropy(logits, target, reduction=reduction, weight=weight)
    torch.testing.assert_close(actual, F.cross_entropy(logits, target, reduction=reduction, weight=weight))


@pytest.mark.parametrize(
    ("given", "expected"), [(torch.zeros(0), [[]]), (torch.tensor(3.0), [[0]]), (torch.eye(2), [[0, 1], [0, 1]])]
)
def test_nonzero_tuple(given, expected):
    assert [index.tolist() for index in nonzero_tuple(given)] == expected


def test_small_things():
    assert ShapeSpec() == ShapeSpec(channels=None, height=None, width=None, stride=None)
    assert ShapeSpec(channels=3).channels == 3
    assert move_device_like(torch.ones(1), torch.ones(1)).device == torch.device("cpu")


def test_block_is_frozen_as_a_whole():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, stride=2)
            self.conv = Conv2d(3, 4, 3, stride=2, norm=get_norm("BN", 4))

    block = Block()
    assert (block.in_channels, block.out_channels, block.stride) == (3, 4, 2)
    assert block.freeze() is block
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)
    assert not any(parameter.requires_grad for parameter in block.parameters())
