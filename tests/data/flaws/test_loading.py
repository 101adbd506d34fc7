"""Whatever is checked becomes the content of a COCO JSON: files of other formats, registered datasets, datasets."""

import json

import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data import check, fix
from d2_maskrcnn.data.coco.records import load_records, register_coco_json
from d2_maskrcnn.data.flaws.loading import load_contents
from d2_maskrcnn.data.formats import read
from detectron2.data import DatasetCatalog, MetadataCatalog


def kinds(report):
    return {each.kind for part in report.parts for each in part.flaws}


def test_registered_datasets(coco_folder):
    coco_folder.data["annotations"][0]["bbox"] = [2, 3, 0, 8]
    coco_folder.write()
    register_coco_json("test_flawed_json", coco_folder.json_file, coco_folder.images)
    records, categories = load_records(coco_folder.json_file, coco_folder.images)
    DatasetCatalog.register("test_flawed_records", lambda: records)
    MetadataCatalog.get("test_flawed_records").thing_classes = list(categories.values())
    try:
        for name in ("test_flawed_json", "test_flawed_records"):
            report = check(name)
            assert kinds(report) >= {"box-no-area"} and report.count("error") == 1
            assert report.parts[0].content.data["categories"][1]["name"] == "dog"
    finally:
        for name in ("test_flawed_json", "test_flawed_records"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_dataset_in_memory_and_its_repair(coco_folder, tmp_path):
    coco_folder.data["annotations"][0]["segmentation"] = [[2, 3, 4, 5]]
    coco_folder.write()
    report = check(read(coco_folder.json_file))
    assert "polygon-points" in kinds(report)
    [fixed] = fix(report, tmp_path / "fixed")
    assert not check(fixed.path).has_errors
    assert len(json.loads(fixed.path.read_text())["annotations"]) == 2


def test_labelme_files(coco_folder):
    shape = {"label": "cat", "points": [[2, 3], [12, 3], [12, 11]], "shape_type": "polygon", "flags": {}}
    far = {**shape, "points": [[200, 300], [212, 300], [212, 311]]}
    data = {"shapes": [shape, far], "imagePath": "0.jpg", "imageHeight": 30, "imageWidth": 41, "version": "5.0.0"}
    (coco_folder.images / "0.json").write_text(json.dumps(data))
    report = check(coco_folder.images / "0.json")
    assert {"polygon-far-beyond", "image-size"} <= kinds(report)
    assert report.parts[0].content.data["images"][0]["file_name"] == "0.jpg"


def test_every_split_of_a_folder_is_a_part(tiny_shapes):
    contents = load_contents(tiny_shapes)
    assert [content.split for content in contents] == ["train", "val"]
    assert [content.image_root.name for content in contents] == ["train", "val"]


def test_a_source_that_does_not_exist(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        check(tmp_path / "nowhere")


def test_the_copy_never_replaces_what_was_checked(coco_folder):
    report = check(coco_folder.json_file)
    content = coco_folder.json_file.read_text()
    with pytest.raises(UserError, match="one of the files that were checked"):
        fix(report, coco_folder.json_file.parent, overwrite=True)
    assert coco_folder.json_file.read_text() == content


def test_a_file_name_that_is_too_long_is_a_missing_image(coco_folder):
    coco_folder.data["images"][0]["file_name"] = 300 * "a" + ".jpg"
    coco_folder.write()
    assert "image-missing" in kinds(check(coco_folder.json_file))
