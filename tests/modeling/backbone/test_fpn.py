import pytest
import torch
import torch.nn.functional as F

from d2_maskrcnn.modeling import FPN
from d2_maskrcnn.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone


class Pyramid(Backbone):
    """Return average-pooled copies of the image, in place of a ResNet's features."""

    def __init__(self, levels=(2, 3, 4, 5)):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        return {f"res{i}": F.avg_pool2d(x, 2**i) for i in self.levels}

    def output_shape(self):
        return {f"res{i}": ShapeSpec(channels=3, stride=2**i) for i in self.levels}


@pytest.mark.parametrize("fuse", ["sum", "avg"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_against_the_formula(fuse, channels_last, grad):
    torch.manual_seed(0)
    fpn = FPN(Pyramid(), ["res2", "res3", "res4", "res5"], 6, top_block=LastLevelMaxPool(), fuse_type=fuse)
    x = torch.randn(2, 3, 64, 96)
    if channels_last:
        fpn, x = fpn.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    with torch.set_grad_enabled(grad):
        features = fpn(x)
    inputs, top_down, expected = fpn.bottom_up(x), None, {}
    for i in (5, 4, 3, 2):
        lateral = getattr(fpn, f"fpn_lateral{i}")(inputs[f"res{i}"])
        if top_down is not None:
            lateral = lateral + F.interpolate(top_down, scale_factor=2, mode="nearest")
            lateral = lateral / 2 if fuse == "avg" else lateral
        top_down = lateral
        expected[f"p{i}"] = getattr(fpn, f"fpn_output{i}")(lateral)
    expected["p6"] = expected["p5"][:, :, ::2, ::2]
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    for name, feature in features.items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["", "BN", "GN"])
@pytest.mark.parametrize("fuse", ["sum", "avg"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fusion_in_place_changes_no_result(narrow, norm, fuse, channels_last):
    torch.manual_seed(0)
    options = {"MODEL__FPN__OUT_CHANNELS": 32, "MODEL__RESNETS__RES2_OUT_CHANNELS": 32}
    backbone = build_backbone(narrow.cfg(MODEL__FPN__NORM=norm, MODEL__FPN__FUSE_TYPE=fuse, **options)).eval()
    assert backbone._can_overwrite("res2", backbone.fpn_lateral2) is False  # gradients are on
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    backbone.double().to(memory_format=memory_format)
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64).to(memory_format=memory_format)
    expected = {name: level.detach() for name, level in backbone(x).items()}
    with torch.no_grad():
        assert backbone._can_overwrite("res2", backbone.fpn_lateral2) == (norm != "GN")
        actual = backbone(x)
        recorded, copies = [], []
        for part in (backbone.bottom_up.res2, backbone.bottom_up, backbone.fpn_lateral2):
            recorded.clear()
            copies.clear()

            def record(module, args, output):
                output = output["res2"] if isinstance(output, dict) else output
                recorded.append(output)
                copies.append(output.clone())

            hook = part.register_forward_hook(record)
            backbone(x)
            hook.remove()
            assert recorded[0].shape[2:] == (24, 16)
            assert part is backbone.fpn_lateral2 or torch.equal(recorded[0], copies[0])
    for name, level in expected.items():
        torch.testing.assert_close(actual[name], level, rtol=1e-9, atol=1e-9)


def test_every_parameter_gets_a_gradient():
    fpn = FPN(Pyramid((2, 3, 4)), ["res2", "res3", "res4"], 4).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: tuple(fpn(x).values()), (x,))
    sum(feature.sum() for feature in fpn(x).values()).backward()
    assert all(p.grad is not None for p in fpn.parameters())


def test_shapes_of_the_registered_backbone(narrow):
    backbone = build_backbone(narrow.cfg())
    assert isinstance(backbone, FPN) and backbone.size_divisibility == 32
    features = backbone(torch.zeros(1, 3, 64, 32))
    for name, shape in backbone.output_shape().items():
        stride = shape.stride
        assert features[name].shape == (1, shape.channels, max(64 // stride, 1), max(32 // stride, 1))
    assert [shape.stride for shape in backbone.output_shape().values()] == [4, 8, 16, 32, 64]


def test_fewer_levels(narrow):
    backbone = build_backbone(narrow.cfg(MODEL__FPN__IN_FEATURES=["res3", "res4"]))
    assert backbone.size_divisibility == 16
    assert list(backbone(torch.zeros(1, 3, 32, 32))) == ["p3", "p4", "p5"]
    assert all(p.requires_grad for name, p in backbone.named_parameters() if "fpn" in name)


@pytest.mark.parametrize(("norm", "has_bias"), [("", True), ("GN", False), ("BN", False)])
def test_norm(narrow, norm, has_bias):
    backbone = build_backbone(narrow.cfg(MODEL__FPN__NORM=norm, MODEL__FPN__OUT_CHANNELS=32))
    assert (backbone.fpn_output3.bias is not None) == has_bias
    assert (backbone.fpn_output3.norm is None) == has_bias
