import json
import shutil

import pytest
from PIL import Image

from d2_maskrcnn.data.conversion import convert
from d2_maskrcnn.data.discovery import find_test_data, find_training_data
from d2_maskrcnn.errors import UserError


@pytest.fixture
def place(tiny_shapes, tmp_path):
    """``place({"train": "a.json", ...}, images)``: a dataset with these JSON files, and its images in folders."""

    def place(files, images=("train", "val")):
        root = tmp_path / "set"
        for split, name in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tiny_shapes / "annotations" / f"instances_{split}.json", root / name)
        for split, folder in zip(("train", "val"), images, strict=True):
            shutil.copytree(tiny_shapes / split, root / folder, dirs_exist_ok=True)
        return root

    return place


@pytest.mark.parametrize(
    ("files", "images"),
    [
        ({"train": "annotations/instances_train.json", "val": "annotations/instances_val.json"}, ("train", "val")),
        ({"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"}, ("train", "valid")),
        ({"train": "train.json", "val": "validation.json"}, ("train", "validation")),
        ({"train": "annotations/train.json", "val": "annotations/val.json"}, ("images/train", "images/val")),
    ],
)
def test_common_layouts(place, tmp_path, files, images):
    root = place(files, images)
    found = find_training_data(root, tmp_path / "split")
    assert (found.train_json, found.val_json) == (root / files["train"], root / files["val"])
    assert found.train_images.samefile(root / images[0]) and found.val_images.samefile(root / images[1])
    assert found.note == "" and not (tmp_path / "split").exists()
    assert find_training_data(root / files["train"], tmp_path).val_json == root / files["val"]
    assert find_test_data(root, tmp_path) == (found.val_json, found.val_images)


def test_test_data_is_used_where_there_is_no_validation_data(place, tmp_path):
    root = place({"train": "train/_annotations.coco.json", "val": "test/_annotations.coco.json"}, ("train", "test"))
    found = find_training_data(root, tmp_path)
    assert found.val_json == root / "test/_annotations.coco.json" and "test data" in found.note


@pytest.mark.parametrize("name", ["train.json", "result.json", "annotations/instances_default.json"])
def test_validation_data_is_split_off(place, tmp_path, name):
    root = place({"train": name}, ("images", "other"))
    found = find_training_data(root, tmp_path / "split", seed=1)
    whole, train, val = (json.loads(p.read_text()) for p in (root / name, found.train_json, found.val_json))
    assert (len(train["images"]), len(val["images"])) == (9, 3)
    assert train["categories"] == val["categories"] == whole["categories"]
    for key in ("images", "annotations"):
        ids = sorted(each["id"] for part in (train, val) for each in part[key])
        assert ids == sorted(each["id"] for each in whole[key])
    assert {each["image_id"] for each in val["annotations"]} <= {each["id"] for each in val["images"]}
    assert found.val_images.samefile(root / "images") and "3 of the 12 images" in found.note
    first = found.val_json.read_text()
    assert find_training_data(root, tmp_path / "again", seed=1).val_json.read_text() == first


def test_other_formats_are_converted(place, tmp_path):
    root = place({"train": "train.json"}, ("images", "other"))
    convert(root / "train.json", "labelme", tmp_path / "labelme")
    found = find_training_data(tmp_path / "labelme", tmp_path / "split")
    assert "LabelMe" in found.origin
    parts = [json.loads(path.read_text()) for path in (found.train_json, found.val_json)]
    assert sum(len(part["images"]) for part in parts) == 12 and all(part["annotations"] for part in parts)
    assert len(list(found.train_images.iterdir())) == 12


def test_evaluating_on_what_may_be_training_data_is_a_warning(place, tmp_path, caplog):
    root = place({"train": "all.json"}, ("train", "images"))
    assert find_test_data(root, tmp_path)[0] == root / "all.json"
    assert "has no validation or test data" in caplog.text
    caplog.clear()
    find_test_data(root / "all.json", tmp_path)
    assert not caplog.text


def test_bad_folders(place, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no annotations"):
        find_training_data(tmp_path / "empty", tmp_path)
    root = place({"train": "one_train.json", "val": "two_train.json"})
    with pytest.raises(UserError, match=r"2 files could be the training data .*one_train\.json.*give the file instead"):
        find_training_data(root, tmp_path)
    with pytest.raises(UserError, match=r"no folder near it contains its images .*000001\.png"):
        find_training_data(root / "one_train.json", tmp_path)
    with pytest.raises(UserError, match="no such file"):
        find_training_data(place({"train": "train.json"}) / "train.json", tmp_path, val=tmp_path / "x.json")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "lists no images"),
        (
            [{"id": "a"}, {"id": "b"}],
            "2 images with a bad 'id' .*expected an integer",
        ),
        ([{"id": 1}, {"id": 1}], "1 image with the id of another image"),
    ],
)
def test_files_that_cannot_be_split(tmp_path, images, message):
    for number, image in enumerate(images):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
        image.update(file_name=f"{number}.png", width=8, height=6)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(UserError, match=message):
        find_training_data(path, tmp_path / "out")
