import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.ops import ROIPooler, multilevel_roi_align
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
SHAPES = {name: ShapeSpec(channels=8, stride=stride) for name, stride in STRIDES.items()}


def make_cfg(**changes):
    head = CfgNode(
        {"POOLER_RESOLUTION": 7, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2", "NAME": "Head", **changes}
    )
    return CfgNode({"MODEL": CfgNode({"ROI_BOX_HEAD": head})})


def pyramid(dtype=torch.float32, channels=8, size=(128, 160), images=2):
    generator = torch.Generator().manual_seed(0)
    height, width = size
    shapes = [(images, channels, height // stride * 4, width // stride * 4) for stride in STRIDES.values()]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def some_boxes(count, seed=0):
    corners = torch.rand((count, 2, 2), generator=torch.Generator().manual_seed(seed)) * torch.tensor([640.0, 512.0])
    return Boxes(torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1))


def test_from_config():
    pooler = ROIPooler.from_cfg(make_cfg(), "MODEL.ROI_BOX_HEAD", SHAPES, ["p2", "p3", "p4", "p5"])
    pooled = pooler(pyramid(), [some_boxes(3), some_boxes(0)])
    assert pooled.shape == (3, 8, 7, 7)
    assert repr(pooler) == (
        "ROIPooler(output_size=(7, 7), scales=(0.25, 0.125, 0.0625, 0.03125), sampling_ratio=0, aligned=True)"
    )
    legacy = ROIPooler.from_cfg(make_cfg(POOLER_TYPE="ROIAlign"), "MODEL.ROI_BOX_HEAD", SHAPES, ["p3"])
    assert (legacy.aligned, legacy.min_level, legacy.scales) == (False, 3, (0.125,))


@pytest.mark.parametrize(
    ("changes", "in_features", "words"),
    [
        ({"POOLER_TYPE": "ROIPool"}, ["p2", "p3"], "POOLER_TYPE ROIPool: expected one of ROIAlignV2, ROIAlign"),
        ({}, ["p2", "p4"], r"\['p2', 'p4'\] \(strides \[4, 16\]\)"),
        ({}, ["p3", "p2"], "each half of the previous one"),
        ({}, [], "powers of two"),
    ],
)
def test_errors_name_the_config_key(changes, in_features, words):
    with pytest.raises(UserError, match=f"MODEL.ROI_BOX_HEAD.*{words}"):
        ROIPooler.from_cfg(make_cfg(**changes), "MODEL.ROI_BOX_HEAD", SHAPES, in_features)


@pytest.mark.parametrize("scales", [(), (0.3,), (0.25, 0.0625), (0.125, 0.25), (0.0,), (-0.25,)])
def test_scales_that_are_not_a_pyramid(scales):
    with pytest.raises(UserError, match="powers of two"):
        ROIPooler(7, scales, 0, "ROIAlignV2")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("count", [0, 100])
def test_equals_torchvision_on_each_level(count, sampling_ratio, aligned):
    pooler = ROIPooler(
        (7, 5), [1 / s for s in STRIDES.values()], sampling_ratio, "ROIAlignV2" if aligned else "ROIAlign"
    )
    features = [feature.requires_grad_() for feature in pyramid()]
    boxes = [some_boxes(count), some_boxes(count, seed=1)]
    pooled = pooler(features, boxes)
    grad = torch.randn_like(pooled)
    gradients = torch.autograd.grad(pooled, features, grad)

    rois = torch.cat([torch.cat([torch.full((len(b), 1), i), b.tensor], dim=1) for i, b in enumerate(boxes)])
    levels = pooler.assign_levels(rois[:, 1:])
    assert count == 0 or set(levels.tolist()) == {0, 1, 2, 3}
    expected = torch.zeros_like(pooled)
    for level, (feature, scale) in enumerate(zip(features, pooler.scales, strict=True)):
        expected[levels == level] = roi_align(
            feature, rois[levels == level], (7, 5), scale, sampling_ratio or -1, aligned
        )
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected, features, grad)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5)


def test_equals_detectron2(shared_dir):
    stored = np.load(shared_dir / "reference/tiny_R101_FPN.npz")
    features = [torch.from_numpy(stored[f"stage/features/{name}"]) for name in STRIDES]
    boxes = [Boxes(torch.from_numpy(stored[f"stage/proposals{image}/boxes"][:50])) for image in range(2)]
    pooled = ROIPooler(7, [1 / stride for stride in STRIDES.values()], 0, "ROIAlignV2")(features, boxes)
    expected = torch.from_numpy(stored["stage/box_pooled_first50"])
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)


class Head(nn.Module):
    """A module whose inputs are tensors, as exporting requires."""

    def __init__(self):
        super().__init__()
        self.pooler = ROIPooler(7, [1 / stride for stride in STRIDES.values()], 2, "ROIAlignV2")

    def forward(self, features, first, second):
        return self.pooler(features, [Boxes(first), Boxes(second)]) * 2


def test_export_for_any_number_of_boxes():
    head, features = Head(), pyramid()
    count, other = torch.export.Dim("count", min=2, max=1000), torch.export.Dim("other", min=2, max=1000)
    program = torch.export.export(
        head,
        (features, some_boxes(20).tensor, some_boxes(30).tensor),
        dynamic_shapes=([{} for _ in features], {0: count}, {0: other}),
    )
    names = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.d2_maskrcnn.multilevel_roi_align.default in names
    for counts in ((20, 30), (5, 9)):
        inputs = (features, *(some_boxes(count, seed=count).tensor for count in counts))
        assert torch.equal(program.module()(*inputs), head(*inputs))


def test_compiles_as_one_graph():
    torch.compiler.reset()
    head, features = Head(), pyramid()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=True)
    inputs = (features, some_boxes(20).tensor, some_boxes(30).tensor)
    assert torch.equal(compiled(*inputs), head(*inputs))


def test_keeps_the_memory_format_and_type_of_the_features():
    features = [feature.contiguous(memory_format=torch.channels_last) for feature in pyramid(torch.bfloat16)]
    pooled = ROIPooler(7, [1 / stride for stride in STRIDES.values()], 0)(features, [some_boxes(5), some_boxes(6)])
    assert pooled.dtype == torch.bfloat16
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    function = multilevel_roi_align(
        features, [some_boxes(5).tensor, some_boxes(6).tensor], 7, [0.25, 0.125, 1 / 16, 1 / 32]
    )
    assert torch.equal(function, pooled)
