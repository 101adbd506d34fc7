import contextlib
import io
import json
import logging
import multiprocessing

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import BoxMode

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def test_loading(tiny_coco, capsys):
    records = load_coco_json(tiny_coco.json_file, tiny_coco.images, "shapes")
    assert [record["image_id"] for record in records] == [10, 11, 12]
    assert set(records[0]) == {"file_name", "height", "width", "image_id", "annotations"}
    assert records[0]["file_name"] == f"{tiny_coco.images}/10.png"
    assert (records[0]["height"], records[0]["width"]) == (40, 60)
    square, triangle, crowd = records[0]["annotations"]
    assert square == {
        "iscrowd": 0,
        "bbox": [4.0, 6.0, 10.0, 10.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": [[4.0, 6.0, 14.0, 6.0, 14.0, 16.0, 4.0, 16.0]],
    }
    assert triangle["category_id"] == 1
    assert triangle["segmentation"] == [[20.0, 18.0, 32.0, 18.0, 26.0, 10.0]]
    assert crowd["iscrowd"] == 1
    assert isinstance(crowd["segmentation"]["counts"], bytes)
    assert mask_util.area(crowd["segmentation"]) == 300
    assert [anno["bbox"][0] for anno in records[1]["annotations"]] == [30]  # the one that is a line is left out
    assert records[2]["annotations"] == []
    assert capsys.readouterr().out == ""  # pycocotools prints, we do not
    meta = MetadataCatalog.get("shapes")
    assert meta.thing_classes == ["square", "triangle"]
    assert meta.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}


def test_without_a_name_ids_stay_and_extra_keys_are_kept(tiny_coco):
    records = load_coco_json(tiny_coco.json_file, tiny_coco.images, extra_annotation_keys=["area"])
    assert [anno["category_id"] for anno in records[0]["annotations"]] == [3, 7, 3]
    assert records[0]["annotations"][1]["area"] == 48


def test_registering_reads_nothing(tmp_path):
    register_coco_instances("later", {"color": 1}, tmp_path / "no.json", tmp_path / "no")
    meta = MetadataCatalog.get("later")
    assert (meta.json_file, meta.image_root) == (str(tmp_path / "no.json"), str(tmp_path / "no"))
    assert (meta.evaluator_type, meta.color) == ("coco", 1)
    with pytest.raises(FileNotFoundError, match=r"no\.json.*DETECTRON2_DATASETS"):
        DatasetCatalog.get("later")
    with pytest.raises(ValueError, match="already"):
        register_coco_instances("later", {}, "a", "b")
    with pytest.raises(TypeError, match="3"):
        register_coco_instances(3, {}, "a", "b")


def test_a_file_without_annotations(tiny_coco, tmp_path):
    data = {key: value for key, value in tiny_coco.data.items() if key != "annotations"}  # as COCO's test split
    (tmp_path / "info.json").write_text(json.dumps(data))
    records = load_coco_json(str(tmp_path / "info.json"), tiny_coco.images, "test_split")
    assert [record["annotations"] for record in records] == [[], [], []]


def change(part, position, **changes):
    def apply(data):
        entry = data[part][position]
        entry.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del entry[key]
        return data

    return apply


BAD_FILES = {
    "empty file": ("", "not a JSON file"),
    "cut short": ('{"images": [', "not a JSON file"),
    "a list": (lambda data: [data], "COCO's instance format"),
    "other keys": (lambda data: {"files": []}, "COCO's instance format"),
    "no categories": (lambda data: data | {"categories": []}, "no categories"),
    "an image without a height": (change("images", 1, height=None), r"images\[1\] lacks 'height'"),
    "an annotation without a box": (change("annotations", 2, bbox=None), r"annotations\[2\] lacks 'bbox'"),
    "an empty box": (change("annotations", 2, bbox=[]), r"annotation 3.*four numbers.*\[\]"),
    "unknown category": (change("annotations", 0, category_id=99), r"annotation 1.*99.*\[3, 7\]"),
    "ids used twice": (change("annotations", 0, id=2), r"'annotations'.*\[2\]"),
    "images twice": (change("images", 0, id=10), r"'images'.*\[10\]"),
    "ignore": (change("annotations", 0, ignore=1), "'ignore'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tiny_coco, tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content(tiny_coco.data)))
    with pytest.raises(ValueError, match=message) as caught:
        load_coco_json(str(path), tiny_coco.images, "bad_dataset")
    assert "bad.json" in str(caught.value) or "bad_dataset" in str(caught.value)


def test_annotations_of_unknown_images_are_left_out_with_a_warning(tiny_coco, tmp_path, caplog):
    tiny_coco.data["annotations"][0]["image_id"] = 999
    (tmp_path / "stray.json").write_text(json.dumps(tiny_coco.data))
    with caplog.at_level(logging.WARNING):
        records = load_coco_json(str(tmp_path / "stray.json"), tiny_coco.images)
    assert sum(len(record["annotations"]) for record in records) == 3
    assert "1 annotations belong to no image" in caplog.text
    assert "skipped 1 annotations whose segmentation" in caplog.text


def as_coco(data):
    api = COCO()
    api.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def test_converting_back_gives_the_same_masks(tiny_coco):
    register_coco_instances("shapes", {}, tiny_coco.json_file, tiny_coco.images)
    converted = convert_to_coco_dict("shapes")
    json.dumps(converted)
    ours, original = as_coco(converted), as_coco(tiny_coco.data)
    assert set(ours.imgs) == set(original.imgs)
    assert {(cat["id"], cat["name"]) for cat in converted["categories"]} == {(3, "square"), (7, "triangle")}
    assert len(ours.anns) == 4
    twins = {1: 1, 2: 2, 3: 3, 4: 5}  # annotation 4 was a line
    for number, twin in twins.items():
        mine, theirs = ours.anns[number], original.anns[twin]
        for key in ("image_id", "category_id", "bbox", "iscrowd", "area"):
            assert mine[key] == theirs[key]
        if twin != 2:  # that one had a line beside its triangle
            np.testing.assert_array_equal(ours.annToMask(mine), original.annToMask(theirs))


MASK = np.zeros((20, 30), dtype=bool)
MASK[2:6, 3:10] = True
RECORDS = [
    {"file_name": "a.jpg", "height": 20, "width": 30}
    | {
        "annotations": [
            {"bbox": [1.23456, 2, 10.5, 12.25], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
            {"bbox": [3, 2, 7, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "segmentation": MASK},
            {"bbox": [3, 2, 7, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1}
            | {"segmentation": mask_util.encode(np.asfortranarray(MASK, dtype=np.uint8))},
        ]
    },
    {"file_name": "b.jpg", "height": 20, "width": 30},
]


def test_converting_records_that_never_were_coco():
    DatasetCatalog.register("own", lambda: RECORDS)
    with pytest.raises(AttributeError, match="thing_classes"):
        convert_to_coco_dict("own")
    MetadataCatalog.get("own").thing_classes = ["a", "b"]
    data = convert_to_coco_dict("own")
    assert [image["id"] for image in data["images"]] == [0, 1]
    box, mask, crowd = data["annotations"]
    assert [anno["id"] for anno in data["annotations"]] == [1, 2, 3]
    assert box["bbox"] == [1.235, 2.0, 9.265, 10.25]
    assert box["area"] == pytest.approx(9.26544 * 10.25, rel=1e-5)
    assert "segmentation" not in box
    assert mask["area"] == crowd["area"] == 28
    assert mask["segmentation"] == crowd["segmentation"]
    assert crowd["iscrowd"] == 1
    assert as_coco(json.loads(json.dumps(data))).annToMask(mask).sum() == 28


def test_writing_coco_json(tmp_path, caplog):
    DatasetCatalog.register("own", lambda: RECORDS)
    MetadataCatalog.get("own").thing_classes = ["a", "b"]
    path = tmp_path / "new" / "own.json"
    convert_to_coco_json("own", str(path))
    assert len(json.loads(path.read_text())["annotations"]) == 3
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".tmp")] == []
    path.write_text("{}")
    convert_to_coco_json("own", str(path))
    assert path.read_text() == "{}"
    assert "Using the existing file" in caplog.text
    convert_to_coco_json("own", str(path), allow_cached=False)
    assert len(json.loads(path.read_text())["images"]) == 2


def test_two_processes_writing_the_same_file(tmp_path):
    DatasetCatalog.register("own", lambda: RECORDS)
    MetadataCatalog.get("own").thing_classes = ["a", "b"]
    path = tmp_path / "own.json"
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=convert_to_coco_json, args=("own", str(path))) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert len(json.loads(path.read_text())["annotations"]) == 3


def test_builtin_datasets_are_registered():
    names = [f"coco_2017_{split}" for split in ("train", "val", "test", "test-dev", "val_100")]
    names += [f"coco_2014_{split}" for split in ("train", "val", "minival", "valminusminival")]
    for name in names:
        assert name in DatasetCatalog
        meta = MetadataCatalog.get(name)
        assert meta.evaluator_type == "coco"
        assert len(meta.thing_classes) == len(meta.thing_colors) == 80
    meta = MetadataCatalog.get("coco_2017_val")
    assert meta.json_file.endswith("coco/annotations/instances_val2017.json")
    assert meta.image_root.endswith("coco/val2017")


def test_coco_categories():
    assert len(COCO_CATEGORIES) == 80
    ids = [category["id"] for category in COCO_CATEGORIES]
    assert ids == sorted(set(ids))
    assert (ids[0], ids[-1]) == (1, 90)
    by_id = {category["id"]: category["name"] for category in COCO_CATEGORIES}
    assert (by_id[1], by_id[13], by_id[27], by_id[90]) == ("person", "stop sign", "backpack", "toothbrush")
    colors = {tuple(category["color"]) for category in COCO_CATEGORIES}
    assert len(colors) == 80
    assert all(0 <= value <= 255 and isinstance(value, int) for color in colors for value in color)
