"""``masks_of_detectron2.json`` contains polygons and boxes, and Detectron2 0.6's results for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.structures import (
    BitMasks,
    PolygonMasks,
    ROIMasks,
    masks,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

REFERENCE = json.loads((Path(__file__).parent / "masks_of_detectron2.json").read_text())
HEIGHT, WIDTH = REFERENCE["image_size"]
BOXES = torch.tensor(REFERENCE["boxes"])
SQUARE = np.array([1.0, 1, 4, 1, 4, 3, 1, 3])


def unpack(packed):
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed["bits"]), np.uint8))[: np.prod(packed["shape"])]
    return torch.from_numpy(bits.reshape(packed["shape"]).astype(bool))


def polygon_masks():
    return PolygonMasks(REFERENCE["polygons"])


def bit_masks():
    return BitMasks(unpack(REFERENCE["bitmasks"]))


class TestAgainstDetectron2:
    def test_rasterising(self):
        rasterised = BitMasks.from_polygon_masks(polygon_masks(), HEIGHT, WIDTH)
        assert rasterised.image_size == (HEIGHT, WIDTH)
        assert torch.equal(rasterised.tensor, bit_masks().tensor)

    @pytest.mark.parametrize("size", [7, 14])
    def test_crops_of_polygons(self, size):
        assert torch.equal(polygon_masks().crop_and_resize(BOXES, size), unpack(REFERENCE["polygon_crops"][str(size)]))

    @pytest.mark.parametrize("size", [7, 14])
    def test_crops_of_bitmaps(self, size, monkeypatch):
        expected = unpack(REFERENCE["bitmask_crops"][str(size)])
        assert torch.equal(bit_masks().crop_and_resize(BOXES, size), expected)
        monkeypatch.setattr(masks, "_PIXELS_AT_ONCE", 3 * HEIGHT * WIDTH)  # a crowd: 3 + 1 at a time
        assert torch.equal(bit_masks().crop_and_resize(BOXES, size), expected)

    def test_boxes_and_areas(self):
        assert bit_masks().get_bounding_boxes().tensor.tolist() == REFERENCE["bitmask_boxes"]
        torch.testing.assert_close(
            polygon_masks().get_bounding_boxes().tensor, torch.tensor(REFERENCE["polygon_boxes"]), rtol=0, atol=0
        )
        assert polygon_masks().area().tolist() == pytest.approx(REFERENCE["polygon_areas"], rel=1e-12)


@pytest.mark.parametrize("size", [1, 7])
def test_crops_of_nothing(size):
    for nothing in (BitMasks(torch.zeros(0, 4, 5)), PolygonMasks([])):
        crops = nothing.crop_and_resize(torch.zeros(0, 4), size)
        assert crops.shape == (0, size, size) and crops.dtype == torch.bool


@pytest.mark.parametrize("given", [PolygonMasks([[SQUARE]]), BitMasks(torch.ones(1, 4, 5))])
def test_crops_need_one_box_each(given):
    with pytest.raises(ValueError, match="2 boxes for 1 masks"):
        given.crop_and_resize(torch.zeros(2, 4), 3)


@pytest.mark.parametrize("given", [PolygonMasks([[SQUARE]]), BitMasks(torch.ones(1, 4, 5))])
def test_crop_of_a_box_without_area(given):
    assert given.crop_and_resize(torch.tensor([[2.0, 2.0, 2.0, 2.0]]), 3).shape == (1, 3, 3)


class TestBitMasks:
    @pytest.mark.parametrize(
        "given", [torch.zeros(0, 2, 3), torch.ones(1, 2, 3, dtype=torch.uint8), np.ones((2, 2, 3)), [[[0, 1]]]]
    )
    def test_creation(self, given):
        bitmaps = BitMasks(given)
        assert bitmaps.tensor.dtype == torch.bool
        assert len(bitmaps) == len(given)
        assert bitmaps.tensor.tolist() == np.asarray(given).astype(bool).tolist()

    @pytest.mark.parametrize("shape", [(2, 2), (1, 1, 2, 2)])
    def test_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(N, H, W\)"):
            BitMasks(torch.zeros(shape))

    @pytest.mark.parametrize(
        ("polygons", "filled"), [([], []), ([[]], [0]), ([[SQUARE]], [6]), ([[SQUARE, SQUARE + 1], []], [10, 0])]
    )
    def test_from_polygons(self, polygons, filled):
        for given in (polygons, PolygonMasks(polygons)):
            bitmaps = BitMasks.from_polygon_masks(given, 6, 7)
            assert bitmaps.tensor.shape == (len(polygons), 6, 7)
            assert bitmaps.area().tolist() == filled
            assert bitmaps.nonempty().tolist() == [count > 0 for count in filled]

    @pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 0), (2, 4, 5)])
    def test_boxes_of_empty_masks(self, shape):
        assert BitMasks(torch.zeros(shape)).get_bounding_boxes().tensor.tolist() == [[0.0] * 4] * shape[0]

    def test_boxes_are_found_pixel_by_pixel(self):
        generator = torch.Generator().manual_seed(0)
        bitmaps = BitMasks(torch.rand(20, 9, 11, generator=generator) > 0.93)
        for mask, box in zip(bitmaps, bitmaps.get_bounding_boxes(), strict=True):
            rows, columns = np.nonzero(mask.numpy())
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

    @pytest.mark.parametrize(
        ("item", "count"),
        [(slice(0, 0), 0), (0, 1), (-1, 1), (torch.tensor([True, False, True, True]), 3), (torch.tensor([3, 1]), 2)],
    )
    def test_indexing(self, item, count):
        assert torch.equal(bit_masks()[item].tensor, bit_masks().tensor[item].view(count, HEIGHT, WIDTH))

    @pytest.mark.parametrize("item", [4, (slice(None), 0)])
    def test_bad_index(self, item):
        with pytest.raises(IndexError):
            bit_masks()[item]

    def test_cat_and_move(self):
        assert len(BitMasks.cat([bit_masks(), bit_masks()[:0], bit_masks()[:1]])) == 5
        with pytest.raises(ValueError, match="at least one"):
            BitMasks.cat([])
        assert bit_masks().to("cpu").device == torch.device("cpu")
        assert "num_instances=4" in repr(bit_masks())


class TestPolygonMasks:
    @pytest.mark.parametrize(
        ("polygons", "area", "box"),
        [
            ([], [], []),
            ([[]], [0.0], [[0.0, 0.0, 0.0, 0.0]]),
            ([[SQUARE]], [6.0], [[1.0, 1.0, 4.0, 3.0]]),
            ([[SQUARE, SQUARE - 9]], [12.0], [[-8.0, -8.0, 4.0, 3.0]]),
            ([[torch.tensor(SQUARE)], [SQUARE.tolist()]], [6.0, 6.0], [[1.0, 1.0, 4.0, 3.0]] * 2),
        ],
    )
    def test_area_and_box(self, polygons, area, box):
        contours = PolygonMasks(polygons)
        assert contours.area().tolist() == area
        assert contours.get_bounding_boxes().tensor.tolist() == box
        assert contours.nonempty().tolist() == [len(instance) > 0 for instance in polygons]

    @pytest.mark.parametrize(
        ("polygons", "message"),
        [
            (5, "int"),
            ([SQUARE], "ndarray"),
            ([[SQUARE[:4]]], "got 4"),
            ([[SQUARE[:7]]], "got 7"),
        ],
    )
    def test_refuses(self, polygons, message):
        with pytest.raises(ValueError, match=message):
            PolygonMasks(polygons)

    @pytest.mark.parametrize(
        ("item", "picked"),
        [
            (slice(0, 0), []),
            ([], []),
            (torch.zeros(4, dtype=torch.bool), []),
            (2, [2]),
            ([3, 0], [3, 0]),
            (torch.tensor([True, False, True, False]), [0, 2]),
            (torch.tensor([1]), [1]),
            (np.array([1, 2]), [1, 2]),
        ],
    )
    def test_indexing(self, item, picked):
        chosen = polygon_masks()[item]
        assert [[p.tolist() for p in instance] for instance in chosen] == [REFERENCE["polygons"][i] for i in picked]

    @pytest.mark.parametrize("item", [4, torch.zeros(2, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)])
    def test_bad_index(self, item):
        with pytest.raises(IndexError):
            polygon_masks()[item]

    def test_cat_and_move(self):
        assert len(PolygonMasks.cat([polygon_masks(), PolygonMasks([])])) == 4
        with pytest.raises(ValueError, match="at least one"):
            PolygonMasks.cat([])
        contours = polygon_masks()
        assert contours.to("cpu") is contours
        assert contours.device == torch.device("cpu")

    def test_crop_changes_no_polygon(self):
        contours = PolygonMasks([[SQUARE.copy()]])
        contours.crop_and_resize(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), 4)
        assert contours.polygons[0][0].tolist() == SQUARE.tolist()


def test_functions_without_polygons():
    assert polygons_to_bitmask([], 3, 4).shape == (3, 4)
    assert not polygons_to_bitmask([], 3, 4).any()
    assert not rasterize_polygons_within_box([], np.array([0.0, 0.0, 1.0, 1.0]), 4).any()


def test_whole_box_is_covered_by_a_polygon_around_it():
    around = np.array([-9.0, -9, 30, -9, 30, 30, -9, 30])
    assert rasterize_polygons_within_box([around], np.array([3.0, 4.0, 9.5, 8.0]), 5).all()


def test_roi_masks_are_pasted_into_their_boxes():
    masks = ROIMasks(torch.ones(2, 4, 4))
    bitmaps = masks.to_bitmasks(torch.tensor([[1.0, 2.0, 5.0, 6.0], [0.0, 0.0, 2.0, 2.0]]), 8, 9)
    assert bitmaps.tensor.shape == (2, 8, 9)
    assert bitmaps.get_bounding_boxes().tensor.tolist() == [[1, 2, 5, 6], [0, 0, 2, 2]]
    assert len(masks[:1]) == 1
    with pytest.raises(IndexError, match=r"\(N, M, M\)"):
        masks[0]
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)"):
        ROIMasks(torch.ones(2, 1, 4, 4))
