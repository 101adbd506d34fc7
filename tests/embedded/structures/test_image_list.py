import pytest
import torch

from detectron2.structures import ImageList

A, B = torch.full((3, 5, 7), 1.0), torch.full((3, 8, 4), 2.0)


@pytest.mark.parametrize(
    ("divisibility", "constraints", "size"),
    [
        (0, None, (8, 7)),
        (0, {}, (8, 7)),
        (1, None, (8, 7)),
        (4, None, (8, 8)),
        (32, None, (32, 32)),
        (4, {"size_divisibility": 16}, (16, 16)),
        (0, {"square_size": 20}, (20, 20)),
        (16, {"square_size": 20}, (32, 32)),
        (4, {"square_size": 0}, (8, 8)),
    ],
)
def test_padded_size(divisibility, constraints, size):
    images = ImageList.from_tensors([A, B], divisibility, padding_constraints=constraints)
    assert images.tensor.shape == (2, 3, *size)
    assert images.image_sizes == [(5, 7), (8, 4)]


def test_padding_lies_right_and_below():
    images = ImageList.from_tensors([A, B], 4, pad_value=9.0)
    assert len(images) == 2
    for image, index, rest in ((A, 0, 8 * 8 - 5 * 7), (B, 1, 8 * 8 - 8 * 4)):
        torch.testing.assert_close(images[index], image, rtol=0, atol=0)
        assert (images.tensor[index] == 9.0).sum() == 3 * rest
    torch.testing.assert_close(images[-1], B, rtol=0, atol=0)


def test_result_shares_no_memory():
    image = A.clone()
    images = ImageList.from_tensors([image])
    images.tensor.zero_()
    torch.testing.assert_close(image, A, rtol=0, atol=0)


def test_images_without_channels_and_of_integers():
    images = ImageList.from_tensors([A[0].to(torch.uint8), B[0].to(torch.uint8)], 4, pad_value=255)
    assert images.tensor.shape == (2, 8, 8)
    assert images.tensor.dtype == torch.uint8
    assert images.to(torch.float32).tensor.dtype == torch.float32
    assert images.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("images", "constraints", "message"),
    [
        ([], None, "at least one"),
        (A, None, "a list"),
        ([A, B[:1]], None, "channels"),
        ([A, B[0]], None, "channels"),
        ([A, B], {"square_size": 7}, "square_size 7"),
    ],
)
def test_refuses(images, constraints, message):
    with pytest.raises(ValueError, match=message):
        ImageList.from_tensors(images, padding_constraints=constraints)
