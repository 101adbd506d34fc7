"""RLE against pycocotools on whole images."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_util

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.structures.masks import (
    Window,
    coco_iou,
    decode_segmentation,
    encode_rle,
    mask_to_polygons,
)

BLOCK = np.zeros((6, 7), np.uint8)
BLOCK[1:4, 2:6] = 1
BLOCK_COUNTS = [13, 3, 3, 3, 3, 3, 3, 3, 8]  # columns of 6 pixels


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
