import numpy as np
import pycocotools.mask as mask_util
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data.coco.records import load_records, register_coco_json
from d2_maskrcnn.data.ground_truth import ground_truth_of
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode

RUNS = {"size": [40, 30], "counts": [100, 50, 1050]}


@pytest.fixture
def varied(coco_folder):
    """A file with unsorted image ids, a crowd, and both kinds of RLE."""
    coco_folder.data["images"].reverse()
    compressed = {**mask_util.frPyObjects(RUNS, 40, 30)}
    compressed["counts"] = compressed["counts"].decode()
    coco_folder.data["annotations"] += [
        coco_folder.annotation(7, 11, 9, iscrowd=1, segmentation=RUNS),
        coco_folder.annotation(4, 11, 5, segmentation=compressed),
    ]
    coco_folder.write()
    return coco_folder


def masks_of(record):
    return ground_truth_of(record).masks


def test_records_equal_detectron2s(varied):
    expected = load_coco_json(str(varied.json_file), str(varied.images), "test_records")
    records, categories = load_records(varied.json_file, varied.images)
    assert categories == {5: "cat", 9: "dog"}
    for ours, theirs in zip(records, expected, strict=True):
        assert {key: value for key, value in ours.items() if key != "annotations"} == {
            key: value for key, value in theirs.items() if key != "annotations"
        }
        for one, other in zip(ours["annotations"], theirs["annotations"], strict=True):
            assert {k: v for k, v in one.items() if k != "segmentation"} == {
                k: v for k, v in other.items() if k != "segmentation"
            }
        assert (masks_of(ours) == masks_of(theirs)).all()


def test_registering(varied):
    register_coco_json("test_registering", varied.json_file, varied.images)
    assert [record["image_id"] for record in DatasetCatalog.get("test_registering")] == [10, 11, 12, 13]
    metadata = MetadataCatalog.get("test_registering")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {5: 0, 9: 1}
    assert (metadata.json_file, metadata.evaluator_type) == (str(varied.json_file), "coco")
    DatasetCatalog.remove("test_registering")


@pytest.mark.parametrize("annotations", [None, []])
def test_a_test_set_has_records_without_annotations(coco_folder, annotations):
    coco_folder.data["annotations"] = annotations
    if annotations is None:
        del coco_folder.data["annotations"]
    coco_folder.write()
    records, _ = load_records(coco_folder.json_file, coco_folder.images)
    assert len(records) == 4
    assert not any("annotations" in record for record in records)
    assert ground_truth_of(records[0]) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data["images"][0].pop("width"), "1 image without 'width'"),
        (lambda data: data["annotations"][0].update(category_id=7), "'categories' does not list"),
        (lambda data: data["annotations"][0].update(ignore=1), "1 annotation with a bad 'ignore' \\(id 1: 1\\)"),
        (lambda data: data["images"][0].update(file_name="../x.jpg"), r"\.\./x\.jpg is outside of its folder"),
        (
            lambda data: data["annotations"][0].update(segmentation={"size": [1, 2], "counts": [2]}),
            "annotation 1: segmentation: an RLE of size",
        ),
    ],
)
def test_bad_files_are_one_line(coco_folder, change, expected):
    change(coco_folder.data)
    coco_folder.write()
    with pytest.raises(UserError, match=expected) as error:
        load_records(coco_folder.json_file, coco_folder.images)
    assert str(error.value).startswith(str(coco_folder.json_file))


def test_file_names_without_a_folder_stay(coco_folder):
    coco_folder.data["images"][0]["file_name"] = "/somewhere/0.jpg"
    coco_folder.write()
    records, _ = load_records(coco_folder.json_file, None)
    assert [record["file_name"] for record in records] == ["/somewhere/0.jpg", "1.jpg", "2.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("mode", "box"), [(BoxMode.XYWH_ABS, [2, 3, 10, 8]), (BoxMode.XYXY_ABS, [2, 3, 12, 11])], ids=["XYWH", "XYXY"]
)
def test_ground_truth_in_any_box_mode(mode, box):
    polygon = [2.0, 3.0, 12.0, 3.0, 12.0, 11.0, 2.0, 11.0]
    annotations = [
        {"bbox": box, "bbox_mode": mode, "category_id": 3, "segmentation": [polygon]},
        {"bbox": box, "bbox_mode": mode, "category_id": 1, "iscrowd": 1},
    ]
    ground_truth = ground_truth_of({"height": 30, "width": 40, "annotations": annotations})
    assert len(ground_truth) == 2
    assert ground_truth.boxes.tolist() == [[2, 3, 12, 11]] * 2
    assert ground_truth.classes.tolist() == [3, 1] and ground_truth.crowd.tolist() == [False, True]
    expected = np.zeros((30, 40), bool)
    expected[3:11, 2:12] = True
    assert (ground_truth.masks[0] == expected).all() and not ground_truth.masks[1].any()
