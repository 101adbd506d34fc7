"""Small masks against the plain way: pasted as whole images and coded by pycocotools."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, Window, encode_rle
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

SIZE = (70, 90)


@pytest.fixture
def random_masks() -> BoxMasks:
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(-10, 100, (40, 2)), rng.uniform(0.5, 60, (40, 2))
    boxes = np.concatenate((centres - sides / 2, centres + sides / 2), axis=1).astype(np.float32)
    blobs = torch.nn.functional.interpolate(torch.from_numpy(rng.normal(size=(40, 1, 5, 5)) * 5), 28, mode="bilinear")
    return BoxMasks(boxes, blobs.sigmoid()[:, 0].float().numpy(), SIZE)


def test_no_masks():
    masks = BoxMasks(np.zeros((0, 4)), np.zeros((0, 28, 28)), SIZE)
    assert len(masks) == 0 and masks.rles() == [] and list(masks) == [] and len(masks.areas()) == 0


def test_pasted_as_the_engine_pastes(random_masks):
    expected = paste_masks_in_image(
        torch.from_numpy(random_masks.probabilities), torch.from_numpy(random_masks.boxes), SIZE
    ).numpy()
    pasted = np.stack(list(random_masks))
    assert expected.any(axis=(1, 2)).sum() > 20
    assert (pasted != expected).sum() <= 1e-4 * expected.sum()


def test_probabilities_before_the_threshold(random_masks):
    for index in range(len(random_masks)):
        window, values = random_masks.probability_crop(index)
        assert window == random_masks.crop(index)[0]
        assert ((values >= random_masks.threshold) == random_masks.crop(index)[1]).all()
    assert values.dtype == np.float32 and len(np.unique(values)) > 2


def test_rle_is_that_of_the_whole_image(random_masks):
    for index, image in enumerate(random_masks):
        expected = mask_util.encode(np.asfortranarray(image, dtype=np.uint8))
        assert random_masks.rle(index) == {"size": list(SIZE), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("seed", range(5))
def test_rle_of_runs_that_go_on_in_the_next_column(seed):
    pixels = (np.random.default_rng(seed).random((6, 7)) > 0.3).astype(np.uint8)
    expected = mask_util.encode(np.asfortranarray(pixels))
    assert encode_rle(Window(0, 0, 7, 6), pixels, (6, 7))["counts"] == expected["counts"].decode()


@pytest.mark.parametrize("value", [0, 1])
def test_rle_of_empty_and_full_images(value):
    pixels = np.full((6, 7), value, np.uint8)
    rle = encode_rle(Window(0, 0, 7, 6), pixels, (6, 7))
    assert (mask_util.decode(rle) == value).all()


def test_polygons_cover_the_mask(random_masks):
    for index, image in enumerate(random_masks):
        rings = random_masks.polygons(index)
        if image.sum() < 30:
            continue
        covered = np.zeros(SIZE, np.uint8)
        import cv2

        cv2.fillPoly(covered, rings, 1)
        assert (covered.astype(bool) | ~image).mean() > 0.99


def test_picking_and_resizing(random_masks):
    chosen = random_masks[np.array([3, 1])]
    assert (chosen.image(0) == random_masks.image(3)).all()
    assert (random_masks[random_masks.areas() > 0].areas() > 0).all()
    larger = random_masks.resized(140, 180)
    ratio = larger.areas().sum() / random_masks.areas().sum()
    assert ratio == pytest.approx(4, rel=0.05)


def test_boxes_that_are_not_numbers_have_no_pixels():
    masks = BoxMasks(np.array([[np.nan, 0, 5, 5], [0, 0, np.inf, 5]]), np.ones((2, 28, 28)), SIZE)
    assert masks.areas().tolist() == [0, 0]


def test_whole_images_become_crops(random_masks):
    images = np.stack(list(random_masks))
    crops = CropMasks.from_images(images, SIZE)
    assert (np.stack(list(crops)) == images).all()
    assert crops.rles() == random_masks.rles()
    with pytest.raises(ValueError, match="size"):
        CropMasks.from_images(images, (5, 5))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        BoxMasks(np.zeros((2, 4)), np.zeros((3, 28, 28)), SIZE)


def instances_of(masks: BoxMasks, size) -> Instances:
    count = len(masks)
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(masks.boxes)),
        scores=torch.linspace(0, 1, count),
        pred_classes=torch.arange(count),
        pred_masks=torch.from_numpy(masks.probabilities)[:, None],
    )


def test_detections_from_the_network_frame(random_masks):
    found = Detections.from_instances(instances_of(random_masks, SIZE), (140, 180))
    assert found.image_size == (140, 180)
    assert found.boxes[:, 2].max() <= 180 and found.boxes.min() >= 0
    assert 0 < len(found) < len(random_masks)  # those outside are gone
    assert found.masks is not None and len(found.masks) == len(found)
    assert len(found[found.scores > 0.5].masks) == (found.scores > 0.5).sum()


def test_detections_with_whole_masks(random_masks):
    instances = instances_of(random_masks, SIZE)
    images = np.stack(list(random_masks))
    instances.pred_masks = torch.from_numpy(images)
    found = Detections.from_instances(instances)
    assert (np.stack(list(found.masks)) == images[found.classes]).all()
    with pytest.raises(ValueError, match="cannot be scaled"):
        Detections.from_instances(instances, (5, 5))


def test_no_detections():
    assert len(Detections.empty(SIZE)) == 0
