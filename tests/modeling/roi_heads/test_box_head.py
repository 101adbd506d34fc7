import pytest
import torch

from d2_maskrcnn.modeling import BoxPredictor, MaskRCNNBoxHead
from d2_maskrcnn.modeling.box_coding import BoxCoder
from detectron2.layers import ShapeSpec

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
POOLED = ShapeSpec(channels=4, height=7, width=7)


@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize(
    ("convs", "fcs", "norm", "output"),
    [([], [16, 12], "", (12,)), ([32], [8], "GN", (8,)), ([8, 6], [], "BN", (6, 7, 7))],
)
@pytest.mark.parametrize("grad", [True, False])
def test_shapes(number, convs, fcs, norm, output, grad):
    head = MaskRCNNBoxHead(input_shape=POOLED, conv_dims=convs, fc_dims=fcs, conv_norm=norm).eval()
    with torch.set_grad_enabled(grad):
        output_tensor = head(torch.randn(number, 4, 7, 7))
    assert output_tensor.shape == (number, *output)
    shape = head.output_shape
    assert tuple(n for n in (shape.channels, shape.height, shape.width) if n is not None) == output


def test_parameter_names_of_the_zoo():
    head = MaskRCNNBoxHead(input_shape=POOLED, conv_dims=[8], fc_dims=[6, 5])
    assert list(head.state_dict()) == [
        f"{layer}.{part}" for layer in ("conv1", "fc1", "fc2") for part in ("weight", "bias")
    ]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_same_with_and_without_gradient(memory_format):
    """Without gradients the first layer is computed as a convolution."""
    torch.manual_seed(0)
    head = MaskRCNNBoxHead(input_shape=POOLED, conv_dims=[], fc_dims=[16, 12])
    x = torch.randn(5, 4, 7, 7).to(memory_format=memory_format)
    by_hand = head.fc2(head.fc1(x.reshape(5, -1)).relu()).relu()
    torch.testing.assert_close(head(x), by_hand, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(head(x), by_hand, rtol=1e-5, atol=1e-6)


def test_empty_batch_gives_every_parameter_a_gradient():
    head = MaskRCNNBoxHead(input_shape=POOLED, conv_dims=[8], fc_dims=[6], conv_norm="BN").train()
    head(torch.zeros(0, 4, 7, 7)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


@pytest.mark.parametrize(("agnostic", "boxes"), [(False, 12), (True, 4)])
def test_predictor(agnostic, boxes):
    torch.manual_seed(0)
    predictor = BoxPredictor(
        ShapeSpec(channels=500), box2box_transform=CODER, num_classes=3, cls_agnostic_bbox_reg=agnostic
    )
    logits, deltas = predictor(torch.randn(0, 500))
    assert logits.shape == (0, 4) and deltas.shape == (0, boxes)
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert predictor.cls_score.bias.abs().sum() == 0 == predictor.bbox_pred.bias.abs().sum()


def test_predictor_on_feature_maps():
    predictor = BoxPredictor(ShapeSpec(channels=6, height=7, width=7), box2box_transform=CODER, num_classes=3)
    logits, _ = predictor(torch.randn(2, 6, 7, 7))
    assert logits.shape == (2, 4)
