import pytest
import torch

from d2_maskrcnn.modeling import MaskRCNNMaskHead
from detectron2.layers import ShapeSpec
from detectron2.utils.events import EventStorage

POOLED = ShapeSpec(channels=4, height=14, width=14)


def head(num_classes=3, conv_dims=(8, 8), **options):
    torch.manual_seed(0)
    return MaskRCNNMaskHead(input_shape=POOLED, num_classes=num_classes, conv_dims=list(conv_dims), **options)


@pytest.mark.parametrize("number", [0, 1, 5])
@pytest.mark.parametrize("num_classes", [3, 1])
def test_shapes(number, num_classes):
    model, x = head(num_classes), torch.randn(number, 4, 14, 14)
    classes = torch.arange(number) % 3
    assert model(x).shape == (number, num_classes, 28, 28)
    probabilities = model.probabilities(x, classes)
    assert probabilities.shape == (number, 1, 28, 28)
    assert number == 0 or 0 <= probabilities.min() <= probabilities.max() <= 1


def test_regions_are_independent_of_their_number():
    model, x = head(), torch.randn(70, 4, 14, 14)
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(each[None]) for each in x])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, model(x).detach())


def test_the_mask_of_the_class():
    model, x = head(), torch.randn(3, 4, 14, 14)
    logits = model(x)
    expected = torch.stack((logits[0, 2], logits[1, 0], logits[2, 1])).sigmoid()
    torch.testing.assert_close(model.probabilities(x, torch.tensor([2, 0, 1]))[:, 0], expected)


def test_losses():
    model, x = head(loss_weight=2.0), torch.randn(2, 4, 14, 14)
    targets, classes = torch.zeros(2, 28, 28, dtype=torch.bool), torch.tensor([1, 2])
    targets[0, :14] = True
    logits = torch.stack((model(x)[0, 1], model(x)[1, 2]))
    expected = torch.where(targets, -logits.sigmoid().log(), -(1 - logits.sigmoid()).log()).mean()
    with EventStorage() as storage:
        losses = model.losses(x, classes, targets)
    assert losses["loss_mask"].item() == pytest.approx(2 * expected.item(), rel=1e-5)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    wrong = (logits > 0) != targets
    assert latest["mask_rcnn/accuracy"] == pytest.approx(1 - wrong.double().mean().item())
    assert latest["mask_rcnn/false_negative"] == pytest.approx(wrong[0, :14].double().mean().item())
    assert latest["mask_rcnn/false_positive"] == pytest.approx(
        (wrong & ~targets).sum().item() / (~targets).sum().item()
    )


def test_no_events_in_evaluation_mode():
    inputs = torch.randn(1, 4, 14, 14), torch.tensor([1]), torch.ones(1, 28, 28, dtype=torch.bool)
    with EventStorage() as storage:
        head().eval().losses(*inputs)
        assert storage.latest() == {}


def test_no_foreground():
    model = head(conv_norm="BN").train()
    with EventStorage() as storage:
        losses = model.losses(
            torch.zeros(0, 4, 14, 14), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28, dtype=torch.bool)
        )
        assert storage.latest() == {}
    losses["loss_mask"].backward()
    assert losses["loss_mask"].item() == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("conv_dims", "norm", "names"),
    [((8,), "", []), ((8, 8, 8), "", ["mask_fcn1", "mask_fcn2"]), ((32, 32), "GN", ["mask_fcn1"])],
)
def test_parameter_names_of_the_zoo(conv_dims, norm, names):
    state = list(head(conv_dims=conv_dims, conv_norm=norm).state_dict())
    parts = ["weight", "norm.weight", "norm.bias"] if norm else ["weight", "bias"]
    expected = [f"{name}.{part}" for name in names for part in parts]
    assert state == [*expected, "deconv.weight", "deconv.bias", "predictor.weight", "predictor.bias"]


def test_initialization():
    model = head(num_classes=80, conv_dims=(64, 64))
    assert model.predictor.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert model.deconv.bias.abs().sum() == 0 == model.predictor.bias.abs().sum()
