"""Pasting against PyTorch's bilinear sampling and against the engine's."""

import pytest
import torch
import torch.nn.functional as F

from d2_maskrcnn.structures.mask_pasting import paste_masks
from detectron2.layers import paste_masks_in_image

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10.0, 20.0, 30.0],
        [10.3, 9.6, 47.9, 38.2],
        [-5.5, -3.2, 20.0, 12.0],
        [0.0, 0.0, 100.0, 50.0],
        [98.5, 48.5, 130.0, 70.0],
        [30.0, 20.0, 30.2, 20.1],
        [120.0, 60.0, 130.0, 70.0],
    ],
)
def test_paste_equals_bilinear_sampling(box, device):
    masks = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    pasted = paste_masks(masks.to(device), torch.tensor([box], device=device), 50, 100, 0.5).cpu()
    ys, xs = torch.meshgrid(torch.arange(50) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    x0, y0, x1, y1 = box
    grid = torch.stack(((xs - x0) / (x1 - x0) * 2 - 1, (ys - y0) / (y1 - y0) * 2 - 1), dim=-1)
    values = F.grid_sample(masks[None], grid[None].float(), align_corners=False)[0]
    certain = (values - 0.5).abs() > 1e-5
    assert torch.equal(pasted[certain], (values >= 0.5)[certain])
    assert certain.float().mean() > 0.99


@pytest.mark.parametrize("device", DEVICES)
def test_paste_equals_the_engine(random_masks, device):
    masks = torch.from_numpy(random_masks.probabilities).to(device)
    boxes = torch.from_numpy(random_masks.boxes).to(device)
    height, width = random_masks.image_size
    inside = (boxes[:, 2:] > 0).all(dim=1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    masks, boxes = masks[inside], boxes[inside]  # Detectron2 fails for boxes outside the image
    expected = paste_masks_in_image(masks, boxes, random_masks.image_size)
    pasted = paste_masks(masks, boxes, *random_masks.image_size)
    assert expected.any(dim=2).any(dim=1).sum() > 20
    assert (pasted != expected).sum() <= 1e-4 * expected.sum()


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_does_not_change_pasting(random_masks, device):
    masks = torch.from_numpy(random_masks.probabilities).to(device)
    boxes = torch.from_numpy(random_masks.boxes).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        pasted = paste_masks(masks, boxes, *random_masks.image_size)
    assert torch.equal(pasted, paste_masks(masks, boxes, *random_masks.image_size))


@pytest.mark.parametrize("device", DEVICES)
def test_paste_threshold(device):
    masks = torch.full((1, 28, 28), 0.3, device=device)
    box = torch.tensor([[10.0, 10.0, 20.0, 30.0]], device=device)
    assert not paste_masks(masks, box, 50, 100, 0.5).any()
    assert paste_masks(masks, box, 50, 100, 0.29).sum() == 200


@pytest.mark.parametrize("device", DEVICES)
def test_paste_boxes_without_pixels(device):
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor([[nan, 0, 5, 5], [0, 0, inf, 5], [-inf, 0, inf, 5], [3, 3, 3, 9], [5, 5, 2, 2]], device=device)
    assert not paste_masks(torch.ones((5, 28, 28), device=device), boxes, 10, 10).any()
    assert paste_masks(torch.ones((0, 28, 28), device=device), boxes[:0], 10, 10).shape == (0, 10, 10)
