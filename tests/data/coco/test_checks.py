import codecs
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import check_coco_json, check_datasets, register_own_data
from d2_maskrcnn.data.flaws.find_flaws import Purpose
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances


def test_a_good_file_has_no_warnings(coco_folder, caplog):
    rle = {"size": [40, 30], "counts": [100, 20, 20, 20, 1040]}  # rows 20 to 39 of the columns 2 and 3
    crowd = coco_folder.annotation(7, 11, 9, iscrowd=1, bbox=[2, 20, 2, 20], segmentation=rle, area=40)
    coco_folder.data["annotations"].append(crowd)
    coco_folder.write()
    table = check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(polygons_only=True)).table
    assert (len(table.images), table.is_crowd.tolist()) == (4, [False, False, False, True])
    assert not caplog.records


def test_an_empty_list(coco_folder):
    coco_folder.data["images"] = []
    assert "0 images; expected at least 1" in coco_folder.error()


def test_crowds_alone_can_be_evaluated_but_not_trained_on(coco_folder):
    for annotation in coco_folder.data["annotations"]:
        annotation["iscrowd"] = 1
    assert "0 annotations that are not crowds" in coco_folder.error()
    check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(train=False))


@pytest.mark.parametrize(
    ("key", "changes", "expected"),
    [
        ("images", {"id": "x"}, "1 image with a bad 'id' (position 0: 'x'); expected an integer"),
        ("images", {"width": 0}, "1 image with a bad 'width' (id 10: 0)"),
        ("images", {"file_name": "a\0.jpg"}, "1 image with a bad 'file_name'"),
        ("images", {"file_name": "a\ud800.jpg"}, "1 image with a bad 'file_name'"),
        ("categories", {"name": 3}, "1 category with a bad 'name' (id 5: 3)"),
        ("categories", {"name": "a\ud800"}, "1 category with a bad 'name'"),
    ],
)
def test_images_and_categories_with_bad_values(coco_folder, key, changes, expected):
    coco_folder.data[key][0].update(changes)
    assert expected in coco_folder.error()


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_keys_that_only_cocos_metrics_need(coco_folder, key):
    for annotation in coco_folder.data["annotations"]:
        del annotation[key]
    assert f"3 annotations without {key!r}" in coco_folder.error()
    check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(evaluate=False))


def test_values_that_training_does_not_need_are_checked_too(coco_folder):
    coco_folder.data["annotations"][0]["area"] = float("nan")
    assert "1 annotation with a bad 'area' (id 1: nan)" in coco_folder.error(evaluate=False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"category_id": 7}, "of a category that 'categories' does not list (annotation 1: category_id 7)"),
        ({"category_id": 5.0}, "1 annotation with a bad 'category_id' (id 1: 5.0)"),
        ({"bbox": "1 2 3 4"}, "1 annotation with a bad 'bbox' (id 1: '1 2 3 4')"),
        ({"bbox": [2, 3, 0, 8]}, "1 box without area (annotation 1 in 0.jpg of 40x30: [2, 3, 0, 8])"),
        ({"bbox": [2, 3, 5, -8]}, "1 box without area"),
        ({"bbox": [-9, 3, 9, 8]}, "1 box outside of the image"),
        ({"bbox": [0, 0, 1e308, 1e308]}, "1 box reaching beyond the image by more than its size"),
        ({"bbox": [0, 0, 10**400, 5]}, "bad 'bbox' (id 1: [0, 0, 1"),
        ({"segmentation": None}, "for boxes without masks set MODEL.MASK_ON to False"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon of 7 numbers"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "expected a list of polygons"),
        ({"segmentation": [[2.0, 3.0, 1e308, -1e308, 12.0, 11.0]]}, "points far outside of the image"),
        ({"segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 10**400]]}, "coordinates that are not numbers"),
        ({"segmentation": [["2", "3", "12", "3", "12", "11"]]}, "coordinates that are not numbers"),
        ({"segmentation": [[True, 3, 12, 3, 12, 11]]}, "coordinates that are not numbers"),
        ({"segmentation": {"size": [30, 40]}}, "an RLE without 'size' or 'counts'"),
        ({"segmentation": {"size": [40, 30], "counts": [1200]}}, "an RLE of size [40, 30] (height, width) in an image"),
        ({"segmentation": {"size": [30.5, 40], "counts": [1200]}}, "an RLE of size [30.5, 40]"),
        ({"segmentation": {"size": [30, "x" * 5000], "counts": [1200]}}, "xxx... (height, width) in an image"),
        ({"segmentation": {"size": [30, 40], "counts": "xyz"}}, "an RLE whose runs do not add up"),
        ({"segmentation": {"size": [30, 40], "counts": [100.5, 1099.5]}}, "an RLE whose runs do not add up"),
        ({"segmentation": {"size": [30, 40], "counts": [-1, 1201]}}, "an RLE whose runs do not add up"),
        ({"id": 10**400}, "bad 'id' (position 0: an integer of 1329 bits)"),
        ({"area": float("inf")}, "bad 'area' (id 1: inf)"),
        ({"area": -1.0}, "bad 'area' (id 1: -1.0)"),
        ({"area": 10**400}, "bad 'area' (id 1: an integer of 1329 bits)"),
        ({"area": 2401}, "1 annotation with an area larger than the image"),
        ({"iscrowd": float("nan")}, "bad 'iscrowd' (id 1: nan)"),
        ({"ignore": 1}, "bad 'ignore' (id 1: 1); expected no such key"),
    ],
)
def test_annotations_with_impossible_values(coco_folder, changes, expected):
    coco_folder.data["annotations"][0].update(changes)
    assert expected in coco_folder.error()


def test_many_problems_are_counted_and_only_the_first_shown(coco_folder):
    for number in range(100, 200):
        coco_folder.data["annotations"].append(coco_folder.annotation(number, 10, 1))
    message = coco_folder.error()
    assert "100 annotations of a category" in message
    assert "annotation 102: category_id 1, ...);" in message
    assert "annotation 103" not in message


def test_boxes_need_no_masks_if_masks_are_off(coco_folder):
    for annotation in coco_folder.data["annotations"]:
        del annotation["segmentation"]
    assert "3 annotations without a 'segmentation'" in coco_folder.error()
    check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(masks=False))


def test_lenient_warns_of_values_but_not_of_ids(coco_folder, caplog):
    coco_folder.data["annotations"][0].update(bbox=[2, 3, 0, 0], segmentation=[[1, 2]])
    coco_folder.write()
    with caplog.at_level(logging.WARNING):
        check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(lenient=True))
    assert "1 box without area" in caplog.text
    assert "training leaves the unusable ones out" in caplog.text
    coco_folder.data["annotations"][0]["category_id"] = 1
    assert "does not list" in coco_folder.error(lenient=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"area": 0}, "1 annotation with an area that does not fit the box (annotation 1 in 0.jpg of 40x30"),
        ({"area": 1e-300}, "1 annotation with an area that does not fit the box"),
        ({"bbox": [1, 2, 13, 12], "area": 132}, None),  # an IoU of 0.51: a tight mask in a loose box
        ({"bbox": [5.1, 3, 1.2, 1], "segmentation": [[5, 3, 6, 3, 6, 5]], "area": 1}, None),  # rounded to pixels
    ],
)
def test_warnings(coco_folder, caplog, changes, expected):
    coco_folder.data["annotations"][0].update(changes)
    coco_folder.write()
    with caplog.at_level(logging.WARNING):
        check_coco_json(coco_folder.json_file, coco_folder.images)
    assert expected in caplog.text if expected else not caplog.records


def test_every_rle_is_checked(coco_folder):
    good = mask_util.encode(np.asfortranarray(np.pad(np.ones((8, 10), np.uint8), ((3, 19), (2, 28)))))
    good["counts"] = good["counts"].decode()
    coco_folder.data["annotations"] = [
        coco_folder.annotation(number, 10, 5, segmentation=good) for number in range(1, 5001)
    ]
    coco_folder.write()
    check_coco_json(coco_folder.json_file, coco_folder.images)
    coco_folder.data["annotations"][3333]["segmentation"] = {**good, "counts": good["counts"][:-1]}
    assert "(annotation 3334 in 0.jpg: an RLE whose runs do not add up" in coco_folder.error()


@pytest.mark.parametrize("missing", [True, False])
def test_a_test_set_without_annotations(coco_folder, caplog, missing):
    coco_folder.data["annotations"] = []
    if missing:
        del coco_folder.data["annotations"]
    coco_folder.write()
    with caplog.at_level(logging.WARNING):
        check_coco_json(coco_folder.json_file, coco_folder.images, Purpose(train=False))
    assert "no annotations: detections are written, but there is nothing to compare them to" in caplog.text


def own_cfg(folder, *more):
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    pairs = ["D2_MASKRCNN.DATA.TRAIN_JSON", str(folder.json_file), "D2_MASKRCNN.DATA.TRAIN_IMAGES", str(folder.images)]
    cfg.merge_from_list([*pairs, "MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", 2, *more])
    register_own_data(cfg)
    return cfg


def test_datasets_of_a_config(coco_folder):
    check_datasets(own_cfg(coco_folder))


def test_number_of_categories(coco_folder):
    with pytest.raises(UserError, match=r"2 categories \(cat, dog\) but .*NUM_CLASSES is 80: set .*NUM_CLASSES to 2$"):
        check_datasets(own_cfg(coco_folder, "MODEL.ROI_HEADS.NUM_CLASSES", 80))


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([], [], "DATASETS.TRAIN is empty"),
        (["coco_2017_trian"], [], r"'coco_2017_trian', which is not registered.*Did you mean coco_2017_train\?"),
        (["coco_2017_train"], [], "annotations.instances_train2017.json: there is no folder"),
    ],
)
def test_datasets_that_are_not_there(train, test, expected):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    with pytest.raises(UserError, match=expected):
        check_datasets(cfg)


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match=r"DATASETS\.TEST is empty"):
        check_datasets(get_cfg(), train=False)


def test_categories_of_training_and_validation_differ(coco_folder, tmp_path):
    other = type(coco_folder)(tmp_path / "others")
    other.data["categories"] = [{"id": 5, "name": "cat"}, {"id": 9, "name": "fish"}]
    other.write()
    cfg = own_cfg(coco_folder, "D2_MASKRCNN.DATA.VAL_JSON", str(other.json_file))
    with pytest.raises(
        UserError, match=r"others.*pets.*differ: number 2 by id is 'fish' in the former and 'dog' in the latter"
    ):
        check_datasets(cfg)


def test_images_of_training_and_validation(coco_folder, tmp_path, caplog):
    other = coco_folder.json_file.with_name("instances_val.json")
    coco_folder.data["images"] = coco_folder.data["images"][:2]
    coco_folder.data["annotations"] = coco_folder.data["annotations"][:2]
    other.write_text(json.dumps(coco_folder.data))
    files = ["D2_MASKRCNN.DATA.VAL_JSON", str(other), "D2_MASKRCNN.DATA.VAL_IMAGES", str(coco_folder.images)]
    with caplog.at_level(logging.WARNING):
        check_datasets(own_cfg(coco_folder, *files))
    assert "2 images shared with" in caplog.text and "(0.jpg and 0.jpg, 1.jpg and 1.jpg)" in caplog.text


def test_more_objects_than_the_model_returns(coco_folder, caplog):
    for number in range(5, 10):
        coco_folder.data["annotations"].append(coco_folder.annotation(number, 11, 5, bbox=[2, 3, 10 + number / 10, 8]))
    coco_folder.write()
    files = [word for key in ("JSON", "IMAGES") for word in (f"D2_MASKRCNN.DATA.VAL_{key}", "")]
    files[1::2] = [str(coco_folder.json_file), str(coco_folder.images)]
    with caplog.at_level(logging.WARNING):
        check_datasets(own_cfg(coco_folder, *files, "TEST.DETECTIONS_PER_IMAGE", 6))
        assert not caplog.records
        check_datasets(own_cfg(coco_folder, *files, "TEST.DETECTIONS_PER_IMAGE", 5, "MODEL.RPN.POST_NMS_TOPK_TEST", 4))
    for key, limit in (("TEST.DETECTIONS_PER_IMAGE", 5), ("MODEL.RPN.POST_NMS_TOPK_TEST", 4)):
        assert f"1 of 4 images have more objects than {key} {limit}, up to 6" in caplog.text


def test_encodings_that_detectron2_cannot_read(coco_folder):
    coco_folder.json_file.write_bytes(codecs.BOM_UTF8 + coco_folder.json_file.read_bytes())
    check_datasets(own_cfg(coco_folder))
    register_coco_instances("test_with_mark", {}, str(coco_folder.json_file), str(coco_folder.images))
    cfg = own_cfg(coco_folder)
    cfg.DATASETS.TRAIN = ("test_with_mark",)
    with pytest.raises(UserError, match="not UTF-8 without byte order mark"):
        check_datasets(cfg)
    DatasetCatalog.remove("test_with_mark")


def test_rle_needs_the_bitmask_format(coco_folder):
    coco_folder.data["annotations"][0]["segmentation"] = {"size": [30, 40], "counts": [63, 8] + [22, 8] * 9 + [859]}
    coco_folder.write()
    with pytest.raises(UserError, match=r"set INPUT\.MASK_FORMAT to bitmask"):
        check_datasets(own_cfg(coco_folder))
    check_datasets(own_cfg(coco_folder, "INPUT.MASK_FORMAT", "bitmask"))
    check_datasets(own_cfg(coco_folder, "MODEL.MASK_ON", False))


@pytest.mark.parametrize(
    ("json_file", "images", "categories"),
    [
        ("coco_subset/annotations/instances_train2017.json", "coco_subset/train2017", 80),
        ("coco_subset/annotations/instances_val2017.json", "coco_subset/val2017", 80),
        ("labelme_voc3/data_dataset_coco/annotations.json", "labelme_voc3/data_dataset_coco", 21),
    ],
)
def test_real_data_is_accepted(shared_dir, json_file, images, categories):
    data, purpose = shared_dir / "data", Purpose(polygons_only=True)
    assert len(check_coco_json(data / json_file, data / images, purpose).table.categories) == categories
