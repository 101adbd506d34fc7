import math

import pytest
import torch

from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.losses import (
    BOX_LOSSES,
    box_regression_loss,
    classification_accuracy,
    classification_loss,
    collected_scalars,
    mask_accuracy,
    mask_loss,
    objectness_loss,
    put_scalars,
    read_scalars,
)
from detectron2.utils.events import EventStorage

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
REFERENCE = torch.tensor([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 25.0, 45.0]])
TARGET = torch.tensor([[2.0, 1.0, 12.0, 11.0], [5.0, 5.0, 15.0, 45.0]])


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_no_boxes(kind):
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = box_regression_loss(kind, CODER, deltas, torch.zeros(0, 4), torch.zeros(0, 4))
    assert loss.item() == 0.0
    loss.backward()
    assert deltas.grad is not None


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_zero_for_correct_boxes(kind):
    loss = box_regression_loss(kind, CODER, CODER.encode(REFERENCE, TARGET), REFERENCE, TARGET)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, 0.2 + 0.1 + 0.25 + math.log(2)),  # L1
        (0.5, 0.2**2 + 0.1**2 + 0.25**2 + math.log(2) - 0.25),  # d^2 / 2 beta below beta, d - beta / 2 above
    ],
)
def test_smooth_l1_by_hand(beta, expected):
    loss = box_regression_loss("smooth_l1", CODER, torch.zeros(2, 4), REFERENCE, TARGET, beta)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_giou_by_hand():
    # Boxes of 10 x 10 shifted by (2, 1): intersection 72, union 128, enclosing box 132.
    expected = 1 - (72 / 128 - (132 - 128) / 132)
    loss = box_regression_loss("giou", CODER, torch.zeros(1, 4), REFERENCE[:1], TARGET[:1])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_diou_by_hand():
    # The centers are sqrt(5) apart, the enclosing box's diagonal is sqrt(12^2 + 11^2).
    expected = 1 - 72 / 128 + 5 / (12**2 + 11**2)
    loss = box_regression_loss("diou", CODER, torch.zeros(1, 4), REFERENCE[:1], TARGET[:1])
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    same_shape = box_regression_loss("ciou", CODER, torch.zeros(1, 4), REFERENCE[:1], TARGET[:1])
    assert same_shape.item() == pytest.approx(expected, rel=1e-5)  # no penalty for the aspect ratio


# Without ciou: the paper treats the weight of its aspect-ratio term as a constant in the gradient (section 3.3).
@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou"])
def test_gradients_of_box_losses(kind):
    reference, target = REFERENCE.double(), TARGET.double()
    deltas = (0.1 * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: box_regression_loss(kind, CODER, d, reference, target, 0.5), (deltas,))


def test_objectness():
    assert objectness_loss(torch.zeros(0), torch.zeros(0, dtype=torch.int8)).item() == 0.0
    logits, labels = torch.tensor([0.0, 2.0, -3.0]), torch.tensor([1, 0, 0], dtype=torch.int8)
    expected = math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-3))
    assert objectness_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_classification():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = classification_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None
    assert classification_loss(torch.zeros(5, 4), torch.tensor([0, 1, 2, 3, 3])).item() == pytest.approx(math.log(4))


def test_mask():
    logits = torch.zeros(0, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 28, 28, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0 and logits.grad is not None
    assert mask_loss(torch.zeros(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)).item() == pytest.approx(math.log(2))


def test_half_precision_is_widened():
    assert objectness_loss(torch.zeros(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.int8)).dtype == torch.float32
    assert (
        classification_loss(torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int64)).dtype
        == torch.float32
    )


def test_scalars_and_tensors_are_logged():
    with EventStorage() as storage:
        put_scalars({})
        put_scalars({"a": 2, "b": torch.tensor(3), "c": torch.tensor(0.5, requires_grad=True)})
        assert {name: value for name, (value, _) in storage.latest().items()} == {"a": 2.0, "b": 3.0, "c": 0.5}


def test_collected_scalars_are_left_to_the_caller():
    with EventStorage() as storage:
        with collected_scalars() as scalars:
            assert scalars == {}
            put_scalars({"a": torch.tensor(0.5), "b": 2})
            put_scalars({"b": 3})
        assert storage.latest() == {} and read_scalars(scalars) == {"a": 0.5, "b": 3}
        put_scalars({"c": torch.tensor(4)})
        assert {name: value for name, (value, _) in storage.latest().items()} == {"c": 4.0}
    assert read_scalars({}) == {}


def test_accuracies_of_the_box_head():
    logits = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 5], [5, 0, 0]])
    classes, foreground = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 2])
    values = read_scalars(classification_accuracy(logits, classes, foreground, 2))
    expected = {"cls_accuracy": 2 / 5, "fg_cls_accuracy": 1 / 3, "false_negative": 1 / 3}
    assert values == {f"fast_rcnn/{name}": pytest.approx(value) for name, value in expected.items()}


def test_accuracies_without_regions():
    none = torch.zeros(0, dtype=torch.int64)
    assert classification_accuracy(torch.zeros(0, 4), none, none, 3) == {}
    assert mask_accuracy(torch.zeros(0, 28, 28), torch.zeros(0, 28, 28, dtype=torch.bool)) == {}
    background_only = classification_accuracy(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1, 1]), none, 1)
    assert background_only == {"fast_rcnn/cls_accuracy": 0.5}
