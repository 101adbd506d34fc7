"""Lazy masks against whole-image masks."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from d2_maskrcnn.structures import lazy_masks
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, MaskSequence
from d2_maskrcnn.structures.masks import rle_area

SIZE = (70, 90)


def test_no_masks():
    masks = BoxMasks(np.zeros((0, 4)), np.zeros((0, 28, 28)), SIZE)
    assert len(masks) == 0 and masks.rles() == [] and list(masks) == [] and len(masks.areas()) == 0


def test_probabilities_before_the_threshold(random_masks):
    for index in range(len(random_masks)):
        window, values = random_masks.probability_crop(index)
        assert window == random_masks.crop(index)[0]
        assert ((values >= random_masks.threshold) == random_masks.crop(index)[1]).all()
    assert values.dtype == np.float32 and len(np.unique(values)) > 2


def test_rles_are_those_of_the_images(random_masks):
    for index, image in enumerate(random_masks):
        expected = mask_util.encode(np.asfortranarray(image, dtype=np.uint8))
        assert random_masks.rle(index) == {"size": list(SIZE), "counts": expected["counts"].decode()}


def test_masks_in_parts(random_masks, monkeypatch):
    whole = random_masks.rles()
    sequence = MaskSequence([random_masks, CropMasks.from_images(np.stack(list(random_masks)), SIZE)])
    monkeypatch.setattr(lazy_masks, "PART_PIXELS", 200)
    assert max(len(list(random_masks.parts(index))) for index in range(len(random_masks))) > 3
    assert random_masks.rles() == whole
    assert sequence.rles() == whole + whole
    assert [rle_area(rle) for rle in whole] == random_masks.areas().tolist()


def test_polygons_are_inside_the_mask(random_masks):
    large = np.flatnonzero(random_masks.areas() > 30)
    for index in large:
        x, y = np.concatenate(random_masks.polygons(index)).astype(int).T
        assert random_masks.image(index)[y, x].all()
    assert len(large) > 10


def test_selecting_and_resizing(random_masks):
    chosen = random_masks[np.array([3, 1])]
    assert (chosen.image(0) == random_masks.image(3)).all()
    assert (random_masks[random_masks.areas() > 0].areas() > 0).all()
    larger = random_masks.resized(140, 180)
    ratio = larger.areas().sum() / random_masks.areas().sum()
    assert ratio == pytest.approx(4, rel=0.05)


def test_crops_resized_to_another_size_are_sampled_at_pixel_centers():
    images = np.random.default_rng(0).random((6, *SIZE)) > 0.4
    images[0], images[1, :, 5:] = False, False
    crops = CropMasks.from_images(images, SIZE)
    for height, width in ((35, 45), (33, 91), (7, 4), (140, 180)):
        rows = ((np.arange(height) + 0.5) * SIZE[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * SIZE[1] / width).astype(int)
        resized = crops.resized(height, width)
        assert resized.image_size == (height, width)
        np.testing.assert_array_equal(np.stack(list(resized)), images[:, rows][:, :, columns])
        sequence = MaskSequence([crops, crops])[np.array([2, 9])].resized(height, width)
        np.testing.assert_array_equal(np.stack(list(sequence)), images[[2, 3]][:, rows][:, :, columns])
    assert len(MaskSequence([crops])[:0].resized(5, 5)) == 0


def test_non_finite_boxes_have_no_pixels():
    masks = BoxMasks(np.array([[np.nan, 0, 5, 5], [0, 0, np.inf, 5]]), np.ones((2, 28, 28)), SIZE)
    assert masks.areas().tolist() == [0, 0] and masks.polygons(0) == []


def test_crops_of_images(random_masks):
    images = np.stack(list(random_masks))
    crops = CropMasks.from_images(images, SIZE)
    assert (np.stack(list(crops)) == images).all()
    assert crops.rles() == random_masks.rles()
    assert (crops[3].image(0) == images[3]).all()
    with pytest.raises(ValueError, match="size"):
        CropMasks.from_images(images, (5, 5))


def test_shapes_must_match():
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        BoxMasks(np.zeros((2, 4)), np.zeros((3, 28, 28)), SIZE)
