"""Pasting against PyTorch's bilinear sampling; RLE against pycocotools on whole images."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as mask_util

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import (
    Window,
    coco_iou,
    decode_segmentation,
    encode_rle,
    mask_to_polygons,
    paste_masks,
)
from detectron2.layers import paste_masks_in_image

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
BLOCK = np.zeros((6, 7), np.uint8)
BLOCK[1:4, 2:6] = 1
BLOCK_COUNTS = [13, 3, 3, 3, 3, 3, 3, 3, 8]  # columns of 6 pixels


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


@pytest.mark.parametrize("seed", range(5))
def test_encode_runs_across_columns(seed):
    mask = np.random.default_rng(seed).random((6, 7)) > 0.3
    expected = mask_util.encode(np.asfortranarray(mask, np.uint8))
    assert encode_rle(mask) == {"size": [6, 7], "counts": expected["counts"].decode()}


@pytest.mark.parametrize("value", [0, 1])
def test_encode_constant_masks(value):
    rle = encode_rle(np.full((6, 7), value, np.uint8))
    assert (mask_util.decode(rle) == value).all()


def test_encode_a_window():
    assert encode_rle(BLOCK[1:4, 2:6], Window(2, 1, 6, 4), (6, 7)) == encode_rle(BLOCK)
    with pytest.raises(ValueError, match="does not fit"):
        encode_rle(BLOCK[1:4, 2:6], Window(5, 1, 9, 4), (6, 7))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 6, 1, 6, 4, 2, 4]],
        [[2, 1, 5, 1, 5, 4, 2, 4], [4, 1, 6, 1, 6, 4, 4, 4]],  # overlapping polygons
        {"size": [6, 7], "counts": BLOCK_COUNTS},
        encode_rle(BLOCK),
        mask_util.encode(np.asfortranarray(BLOCK)),
    ],
    ids=["polygon", "polygons", "uncompressed", "str", "bytes"],
)
def test_decode(segmentation):
    decoded = decode_segmentation(segmentation, 6, 7)
    assert decoded.dtype == bool and (decoded == BLOCK).all()


@pytest.mark.parametrize("segmentation", [None, []])
def test_decode_an_empty_segmentation(segmentation):
    decoded = decode_segmentation(segmentation, 6, 7)
    assert decoded.shape == (6, 7) and not decoded.any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], r"expected polygons .*got \[1, 2, 3, 4\]"),
        ([[1, 2, 3, 4, 5, 6, 7]], "expected polygons"),
        ([[1, 2, 3, 4, 5, "6x"]], "expected polygons"),
        ([[1, 2, 3, 4, 5, 1e9]], "far outside of its image"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside of its image"),
        ("text", "expected polygons or an RLE"),
        ({"size": [6, 7]}, "size and counts"),
        ({"size": [7, 6], "counts": BLOCK_COUNTS}, r"size \[7, 6\] \(height, width\) in an image of \[6, 7\]"),
        ({"size": [6, 7], "counts": BLOCK_COUNTS[:-1]}, "cover 34 pixels, expected 6 x 7"),
        ({"size": [6, 7], "counts": encode_rle(np.zeros((3, 3)))["counts"]}, "cover 9 pixels"),
        ({"size": [6, 7], "counts": "é"}, "not the counts"),
    ],
)
def test_decode_malformed_segmentations(segmentation, message):
    with pytest.raises(UserError, match=message):
        decode_segmentation(segmentation, 6, 7)


def test_polygons_of_a_mask():
    mask = np.zeros((40, 50), bool)
    mask[5:20, 10:30] = True
    mask[8:12, 15:20] = False  # a hole
    mask[30:38, 40:48] = True
    mask[0, 0] = True  # one pixel has no contour of three points
    polygons = mask_to_polygons(mask, offset=(100, 200))
    assert sorted(polygon.min(axis=0).tolist() for polygon in polygons) == [[110.5, 205.5], [140.5, 230.5]]
    filled = cv2.fillPoly(np.zeros((40, 50), np.uint8), [(p - (100.5, 200.5)).astype(np.int32) for p in polygons], 1)
    assert filled.sum() == 15 * 20 + 8 * 8
    assert mask_to_polygons(mask[:0]) == []


def test_polygons_within_a_tolerance():
    disk = cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 20, 1, -1)
    (exact,), (coarse,) = mask_to_polygons(disk), mask_to_polygons(disk, tolerance=2)
    assert 3 <= len(coarse) < len(exact)


def test_iou():
    half = BLOCK.copy()
    half[:, 4:] = 0
    rles = [encode_rle(BLOCK), encode_rle(half)]
    assert coco_iou(rles, rles).tolist() == [[1, 0.5], [0.5, 1]]
    assert coco_iou(rles, rles, np.array([True, False])).tolist() == [[1, 0.5], [1, 1]]
    boxes = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10]])
    assert coco_iou(boxes, boxes) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))
    assert coco_iou([], rles).shape == (0, 2) and coco_iou(boxes, boxes[:0]).shape == (2, 0)
