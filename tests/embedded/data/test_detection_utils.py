import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, BoxMode, PolygonMasks

SIZE = (20, 30)  # (h, w)


def square(x=4.0, y=6.0, side=8.0):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def annotation(segmentation=None, **changes):
    anno = {"bbox": [4.0, 6.0, 8.0, 8.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    if segmentation is not None:
        anno["segmentation"] = segmentation
    return anno | changes


def square_mask(dtype=np.uint8):
    mask = np.zeros(SIZE, dtype=dtype)
    mask[6:14, 4:12] = 1
    return mask


def uncompressed(mask):
    runs = np.flatnonzero(np.diff(np.concatenate([[2], mask.flatten(order="F"), [2]])))
    return {"size": list(mask.shape), "counts": np.diff(runs).tolist()}


SEGMENTATIONS = {
    "polygon": [square()],
    "polygon of an array": [np.array(square())],
    "compressed": mask_util.encode(np.asfortranarray(square_mask())),
    "uncompressed": uncompressed(square_mask()),
}


def test_check_image_size():
    record = {"file_name": "a.jpg"}
    utils.check_image_size(record, np.zeros((4, 5, 3)))
    assert (record["height"], record["width"]) == (4, 5)
    utils.check_image_size(record, np.zeros((4, 5, 3)))
    with pytest.raises(utils.SizeMismatchError, match=r"'a\.jpg' is 4 x 5 pixels .*, but its record has 5 x 4"):
        utils.check_image_size(record, np.zeros((5, 4, 3)))
    assert issubclass(utils.SizeMismatchError, ValueError)


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_annotations_follow_the_image(name):
    transforms = T.TransformList([T.ResizeTransform(*SIZE, 40, 60), T.HFlipTransform(60)])
    anno = utils.transform_instance_annotations(annotation(SEGMENTATIONS[name]), transforms, (40, 60))
    assert anno["bbox"].tolist() == [36, 12, 52, 28]
    assert anno["bbox_mode"] == BoxMode.XYXY_ABS
    assert anno["category_id"] == 1
    expected = np.zeros((40, 60), dtype=bool)
    expected[12:28, 36:52] = True
    instances = utils.annotations_to_instances([anno], (40, 60), "bitmask")
    np.testing.assert_array_equal(instances.gt_masks.tensor[0].numpy(), expected)
    assert instances.gt_boxes.tensor.tolist() == [[36, 12, 52, 28]]


def test_boxes_are_clipped_and_lists_of_transforms_will_do():
    anno = utils.transform_instance_annotations(
        annotation(bbox=[-5.0, 15.0, 100.0, 20.0]), [T.VFlipTransform(20)], SIZE
    )
    assert anno["bbox"].tolist() == [0, 0, 30, 5]


def test_integers_are_not_rounded():
    anno = annotation([[1, 1, 4, 1, 4, 4]], bbox=[1, 1, 3, 3])
    utils.transform_instance_annotations(anno, T.ResizeTransform(20, 30, 30, 45), (30, 45))
    assert anno["bbox"].tolist() == [1.5, 1.5, 6.0, 6.0]
    assert anno["segmentation"][0].tolist() == [1.5, 1.5, 6.0, 1.5, 6.0, 6.0]


def test_what_a_transform_is_given_stays_as_it_is():
    points = np.array(square())
    utils.transform_instance_annotations(annotation([points]), T.HFlipTransform(30), SIZE)
    assert points.tolist() == square()


def test_masks_of_another_size_than_the_image_are_kept_with_a_warning(caplog):
    instances = utils.annotations_to_instances([annotation(square_mask())], (21, 30), "bitmask")
    assert instances.gt_masks.tensor.shape == (1, 20, 30)
    assert "(20, 30)" in caplog.text and "(21, 30)" in caplog.text


def test_bad_segmentations_are_refused():
    with pytest.raises(ValueError, match="int"):
        utils.transform_instance_annotations(annotation(3), T.NoOpTransform(), SIZE)
    with pytest.raises(ValueError, match=r"\(20, 30\).*\(21, 30\)"):
        utils.transform_instance_annotations(annotation(SEGMENTATIONS["compressed"]), T.NoOpTransform(), (21, 30))
    with pytest.raises(ValueError, match=r"\(20, 30\) and \(3, 4\)"):
        different = [annotation(square_mask()), annotation(np.zeros((3, 4)))]
        utils.annotations_to_instances(different, SIZE, "bitmask")
    with pytest.raises(ValueError, match="int"):
        utils.annotations_to_instances([annotation(3)], SIZE, "bitmask")
    with pytest.raises(ValueError, match=r"INPUT\.MASK_FORMAT 'bitmask'"):
        utils.annotations_to_instances([annotation(square_mask())], SIZE, "polygon")
    with pytest.raises(ValueError, match="1 of 2"):
        utils.annotations_to_instances([annotation([square()]), annotation()], SIZE)
    with pytest.raises(ValueError, match="'rle'"):
        utils.annotations_to_instances([], SIZE, "rle")


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_no_annotations(mask_format):
    instances = utils.annotations_to_instances([], SIZE, mask_format)
    assert len(instances) == 0
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert not instances.has("gt_masks")
    assert len(utils.filter_empty_instances(instances)) == 0


@pytest.mark.parametrize(("mask_format", "expected"), [("polygon", PolygonMasks), ("bitmask", BitMasks)])
def test_instances(mask_format, expected):
    annos = [annotation([square()]), annotation([square(10.0, 2.0), square(20.0, 2.0)], category_id=0)]
    instances = utils.annotations_to_instances(annos, SIZE, mask_format)
    assert instances.image_size == SIZE
    assert instances.gt_classes.tolist() == [1, 0]
    assert isinstance(instances.gt_masks, expected)
    boxes = instances.gt_masks.get_bounding_boxes().tensor.tolist()
    assert boxes == [[4, 6, 12, 14], [10, 2, 28, 10]]
    without_masks = utils.annotations_to_instances([annotation()], SIZE, mask_format)
    assert not without_masks.has("gt_masks")


@pytest.mark.parametrize("mask", [square_mask(bool), square_mask() * 255, square_mask(np.int64)])
def test_masks_of_any_type(mask):
    tensor = utils.annotations_to_instances([annotation(mask)], SIZE, "bitmask").gt_masks.tensor
    assert tensor.dtype == torch.bool
    np.testing.assert_array_equal(tensor[0].numpy(), square_mask(bool))


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_instances_without_area_are_left_out(mask_format):
    annos = [
        annotation([square()]),
        annotation([square()], bbox=[4.0, 6.0, 0.0, 8.0]),
        annotation([], category_id=2),
        annotation([square()], category_id=3),
    ]
    instances = utils.annotations_to_instances(annos, SIZE, mask_format)
    assert utils.filter_empty_instances(instances).gt_classes.tolist() == [1, 3]
    assert utils.filter_empty_instances(instances, by_mask=False).gt_classes.tolist() == [1, 2, 3]
    assert utils.filter_empty_instances(instances, by_box=False).gt_classes.tolist() == [1, 1, 3]
    kept, which = utils.filter_empty_instances(instances, return_mask=True)
    assert which.tolist() == [True, False, False, True]
    assert len(kept.gt_masks) == 2
    assert len(utils.filter_empty_instances(instances, box_threshold=9.0)) == 0
    with pytest.raises(ValueError, match="by_box"):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


def test_default_augmentations():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 40)
    cfg.INPUT.MAX_SIZE_TRAIN = 99
    resize, flip = utils.build_augmentation(cfg, True)
    assert (resize.short_edge_length, resize.max_size, resize.sample_style) == ((30, 40), 99, "choice")
    assert (flip.prob, flip.horizontal, flip.vertical) == (0.5, True, False)
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert utils.build_augmentation(cfg, True)[1].vertical
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, True)) == 1
    (resize,) = utils.build_augmentation(cfg, False)
    assert resize.get_transform(np.zeros((400, 600, 3))).new_h == 800
    cfg.INPUT.RANDOM_FLIP = "sideways"
    with pytest.raises(ValueError, match=r"RANDOM_FLIP.*'sideways'"):
        utils.build_augmentation(cfg, True)
    assert utils.build_transform_gen is utils.build_augmentation


@pytest.mark.parametrize("x", [-8.0, 0.0, 11.0, 26.0])
def test_a_crop_contains_the_center_of_its_instance(x):
    np.random.seed(0)
    instance = annotation(bbox=[x, 6.0, 8.0, 8.0])
    if x + 4 < 0:
        with pytest.raises(ValueError, match="outside"):
            utils.gen_crop_transform_with_instance((9, 12), SIZE, instance)
        return
    places = set()
    for _ in range(100):
        crop = utils.gen_crop_transform_with_instance((9, 12), SIZE, instance)
        assert (crop.h, crop.w) == (9, 12)
        assert 0 <= crop.y0 <= 11
        assert 0 <= crop.x0 <= 18
        assert crop.x0 <= x + 4 <= crop.x0 + 12
        assert crop.y0 <= 10 <= crop.y0 + 9
        places.add((crop.x0, crop.y0))
    assert len(places) >= 10


def test_a_crop_must_fit_the_image():
    with pytest.raises(ValueError, match=r"\(21, 12\).*\(20, 30\)"):
        utils.gen_crop_transform_with_instance((21, 12), SIZE, annotation())


@pytest.mark.usefixtures("clean_catalogs")
def test_datasets_must_agree():
    utils.check_metadata_consistency("thing_classes", [])
    MetadataCatalog.get("one").thing_classes = ["a"]
    MetadataCatalog.get("same").thing_classes = ["a"]
    MetadataCatalog.get("other").thing_classes = ["b"]
    utils.check_metadata_consistency("thing_classes", ["one", "same"])
    with pytest.raises(ValueError, match=r"'one' and 'other'.*thing_classes.*\['a'\].*\['b'\]"):
        utils.check_metadata_consistency("thing_classes", ["one", "same", "other"])
    with pytest.raises(AttributeError, match="thing_classes"):
        utils.check_metadata_consistency("thing_classes", ["unknown"])
