import math

import pytest
import torch

from d2_maskrcnn.modeling.box_coding import SCALE_CLAMP, BoxCoder, clip_boxes


def random_boxes(number, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator, dtype=dtype) * 100
    return torch.cat((corner, corner + 1 + torch.rand(number, 2, generator=generator, dtype=dtype) * 100), dim=1)


@pytest.mark.parametrize("number", [0, 1, 50])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_inverts_encode(number, weights):
    coder = BoxCoder(weights)
    reference, target = random_boxes(number, 0), random_boxes(number, 1)
    deltas = coder.encode(reference, target)
    assert deltas.shape == (number, 4)
    torch.testing.assert_close(coder.decode(deltas, reference), target, rtol=1e-5, atol=1e-3)


def test_encode_by_hand():
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    reference, target = torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[1.0, 2.0, 21.0, 22.0]])
    expected = [[10 * 6 / 10, 10 * 2 / 20, 5 * math.log(2), 0.0]]
    torch.testing.assert_close(coder.encode(reference, target), torch.tensor(expected))


def test_several_boxes_per_reference():
    coder, reference = BoxCoder((1.0, 1.0, 1.0, 1.0)), random_boxes(3, 0)
    deltas = torch.randn(3, 8)
    both = coder.decode(deltas, reference)
    assert both.shape == (3, 8)
    torch.testing.assert_close(both[:, 4:], coder.decode(deltas[:, 4:], reference))
    batched = coder.decode(deltas[None], reference[None])
    torch.testing.assert_close(batched[0], both)


def test_growth_is_bounded():
    boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
        torch.tensor([[0.0, 0.0, 1e4, -1e4]]), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    )
    width, height = (boxes[:, 2:] - boxes[:, :2])[0].tolist()
    assert width == pytest.approx(1000.0) and height == 0.0
    assert pytest.approx(math.log(1000 / 16)) == SCALE_CLAMP


def test_half_precision_deltas_give_float32_boxes():
    boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(
        torch.zeros(1, 4, dtype=torch.bfloat16), torch.tensor([[1.0, 2.0, 1003.0, 4.0]])
    )
    assert boxes.dtype == torch.float32 and boxes.tolist() == [[1.0, 2.0, 1003.0, 4.0]]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-5.0, -5.0, 60.0, 60.0], [0.0, 0.0, 50.0, 40.0]),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        ([70.0, 70.0, 80.0, 80.0], [50.0, 40.0, 50.0, 40.0]),
    ],
)
def test_clip(box, expected):
    assert clip_boxes(torch.tensor([box]), (40, 50)).tolist() == [expected]
    assert clip_boxes(torch.zeros(0, 4), (40, 50)).shape == (0, 4)
    assert clip_boxes(torch.full((1, 4), float("nan")), (40, 50)).isnan().all()


def test_gradients():
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    reference = random_boxes(4, 0, torch.float64)
    deltas = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: coder.decode(d, reference), (deltas,))
