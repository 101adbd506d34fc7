import pytest
import torch

from d2_maskrcnn.modeling.backbone.resnet import build_resnet
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec

ALL_PARTS = ["stem", "res2", "res3", "res4", "res5"]


def resnet(narrow, **overrides):
    return build_resnet(narrow.cfg(**overrides), ShapeSpec(channels=3))


@pytest.mark.parametrize(("depth", "blocks"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))])
def test_depths(narrow, depth, blocks):
    model = resnet(narrow, MODEL__RESNETS__DEPTH=depth)
    assert tuple(len(getattr(model, f"res{i}")) for i in (2, 3, 4, 5)) == blocks
    # the stem, 3 per block, 4 shortcuts
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + 3 * sum(blocks) + 4


def test_shapes_and_strides(narrow):
    model = resnet(narrow, MODEL__RESNETS__OUT_FEATURES=["stem", "res2", "res3", "res4", "res5"])
    outputs = model(torch.zeros(1, 3, 64, 96))
    shapes = model.output_shape()
    assert list(outputs) == list(shapes) == ["stem", "res2", "res3", "res4", "res5"]
    for name, feature in outputs.items():
        shape = shapes[name]
        assert feature.shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert [shapes[name].channels for name in shapes] == [8, 16, 32, 64, 128]
    assert [shapes[name].stride for name in shapes] == [4, 4, 8, 16, 32]


def test_unneeded_stages_are_not_built(narrow):
    model = resnet(narrow, MODEL__RESNETS__OUT_FEATURES=["res3"])
    assert not hasattr(model, "res4") and list(model(torch.zeros(1, 3, 32, 32))) == ["res3"]
    assert list(resnet(narrow, MODEL__RESNETS__OUT_FEATURES=["stem"])(torch.zeros(1, 3, 32, 32))) == ["stem"]


def test_dilation_keeps_the_resolution_of_res5(narrow):
    model = resnet(narrow, MODEL__RESNETS__RES5_DILATION=2)
    assert model.output_shape()["res5"].stride == 16
    assert model(torch.zeros(1, 3, 64, 64))["res5"].shape == (1, 128, 4, 4)
    assert {block.conv2.dilation for block in model.res5} == {(2, 2)}


@pytest.mark.parametrize("in_1x1", [True, False])
def test_which_convolution_has_the_stride(narrow, in_1x1):
    block = resnet(narrow, MODEL__RESNETS__STRIDE_IN_1X1=in_1x1).res3[0]
    assert block.conv1.stride == ((2, 2) if in_1x1 else (1, 1))
    assert block.conv2.stride == ((1, 1) if in_1x1 else (2, 2))
    assert block.shortcut.stride == (2, 2)


def test_groups_and_widths(narrow):
    model = resnet(narrow, MODEL__RESNETS__NUM_GROUPS=4, MODEL__RESNETS__WIDTH_PER_GROUP=2)
    assert [getattr(model, f"res{i}")[0].conv2.weight.shape for i in (2, 5)] == [(8, 2, 3, 3), (64, 16, 3, 3)]


def test_no_shortcut_for_equal_widths(narrow):
    model = resnet(narrow, MODEL__RESNETS__STEM_OUT_CHANNELS=16)
    assert model.res2[0].shortcut is None and model.res3[0].shortcut is not None


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [(0, []), (1, ["stem"]), (2, ["stem", "res2"]), (5, ALL_PARTS), (9, ALL_PARTS)],
)
def test_freezing(narrow, freeze_at, frozen):
    model = resnet(narrow, MODEL__BACKBONE__FREEZE_AT=freeze_at, MODEL__RESNETS__NORM="BN")
    for name in ALL_PARTS:
        part = getattr(model, name)
        assert all(p.requires_grad != (name in frozen) for p in part.parameters())
        norms = [module.norm for module in part.modules() if isinstance(module, torch.nn.Conv2d)]
        assert all(isinstance(norm, FrozenBatchNorm2d) == (name in frozen) for norm in norms)


def test_training_keeps_frozen_statistics(narrow):
    model = resnet(narrow, MODEL__BACKBONE__FREEZE_AT=1, MODEL__RESNETS__NORM="BN").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    after = model.state_dict()
    changed = {name.split(".")[0] for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"res2", "res3", "res4", "res5"}


def test_initialization(narrow):
    """He et al. 2015 (fan-out): the standard deviation is sqrt(2 / (out channels * kernel area))."""
    torch.manual_seed(0)
    weight = resnet(narrow, MODEL__RESNETS__WIDTH_PER_GROUP=32).res4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "part", "number"), [(16, "", 3), (16, ".conv3", 3), (8, ".shortcut", 1)])
def test_inputs_and_recorded_results_are_not_overwritten(narrow, channels, part, number):
    torch.manual_seed(0)
    model = resnet(narrow, MODEL__RESNETS__STEM_OUT_CHANNELS=channels).eval().to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, 16, 24).to(memory_format=torch.channels_last)
    recorded, copies = [], []

    def record(module, args, output):
        recorded.append(output)
        copies.append(output.clone())

    expected, kept = model.res2(x), x.clone()
    assert torch.equal(x, kept)
    names = {f"{index}{part}" for index in range(3)}
    hooks = [module.register_forward_hook(record) for name, module in model.res2.named_modules() if name in names]
    torch.testing.assert_close(model.res2(x), expected, rtol=1e-4, atol=1e-4)
    assert len(recorded) == number and all(map(torch.equal, recorded, copies))
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(torch.nn.Sequential(*model.res2)(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_inputs_recorded_before_a_block_are_not_overwritten(narrow):
    model = resnet(narrow).eval().to(memory_format=torch.channels_last)
    recorded, copies = [], []

    def record(module, args):
        recorded.append(args[0])
        copies.append(args[0].clone())

    model.res4[3].register_forward_pre_hook(record)
    model(torch.randn(1, 3, 64, 64))
    assert len(recorded) == 1 and torch.equal(recorded[0], copies[0])
