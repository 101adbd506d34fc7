import copy
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data import check_coco_json

POLYGON = {"name": "polygon", "all_points_x": [4, 20, 20, 4], "all_points_y": [5, 5, 15, 15]}


def entry(name, *shapes, as_list=False):
    regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]
    return {
        "fileref": "",
        "size": 1,
        "filename": name,
        "file_attributes": {},
        "regions": regions if as_list else {str(i): region for i, region in enumerate(regions)},
    }


@pytest.fixture
def script(load_script):
    return load_script("datasets/prepare_balloon.py")


@pytest.fixture
def via(tmp_path):
    """A folder of VIA data: two training images, one of them rotated by EXIF, and one validation image."""
    folder = tmp_path / "via"
    for split, names in (("train", ["a.jpg", "turned.jpg"]), ("val", ["c.jpg"])):
        (folder / split).mkdir(parents=True)
        for name in names:
            image = Image.new("RGB", (40, 30), "red")
            exif = image.getexif()
            if name == "turned.jpg":
                exif[0x0112] = 6
            image.save(folder / split / name, exif=exif)
        entries = {name + "1": entry(name, POLYGON, as_list=name == "c.jpg") for name in names}
        (folder / split / "via_region_data.json").write_text(json.dumps(entries))
    return folder


def change(folder, edit):
    path = folder / "train" / "via_region_data.json"
    data = json.loads(path.read_text())
    data = edit(data) or data
    path.write_text(json.dumps(data))


def first_region(data):
    return data["a.jpg1"]["regions"]["0"]


def test_converts_to_valid_coco_data(script, via, tmp_path):
    train, val = script.convert_dataset(via, tmp_path / "out")
    assert [(image["width"], image["height"]) for image in train["images"]] == [(40, 30), (30, 40)]
    annotation = train["annotations"][0]
    assert annotation["segmentation"] == [[4.5, 5.5, 20.5, 5.5, 20.5, 15.5, 4.5, 15.5]]
    assert annotation["bbox"] == [4.5, 5.5, 16.0, 10.0]
    assert annotation["area"] == pytest.approx(160, abs=20)
    assert len(val["annotations"]) == 1
    for split in ("train", "val"):
        summary = check_coco_json(
            tmp_path / "out" / "annotations" / f"instances_{split}.json", tmp_path / "out" / split, polygons_only=True
        )
        assert summary.categories == ("balloon",)


def test_no_regions_at_all(script, via, tmp_path):
    change(via, lambda data: data["a.jpg1"].update(regions={}))
    train, _ = script.convert_dataset(via, tmp_path / "out")
    assert [annotation["image_id"] for annotation in train["annotations"]] == [2]


def test_project_files_rectangles_and_categories(script, via, tmp_path):
    def edit(data):
        first_region(data)["shape_attributes"] = {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 20}
        first_region(data)["region_attributes"] = {"kind": "red"}
        data["turned.jpg1"]["regions"]["0"]["region_attributes"] = {"kind": "blue"}
        return {"_via_settings": {}, "_via_img_metadata": data}

    change(via, edit)
    data = json.loads((via / "val" / "via_region_data.json").read_text())
    data["c.jpg1"]["regions"][0]["region_attributes"] = {"kind": "red"}
    (via / "val" / "via_region_data.json").write_text(json.dumps(data))
    train, val = script.convert_dataset(via, tmp_path / "out", attribute="kind")
    assert train["categories"] == val["categories"] == [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]
    assert [annotation["category_id"] for annotation in train["annotations"]] == [2, 1]
    assert train["annotations"][0]["bbox"] == [1, 2, 10, 20]


def test_polygons_are_clipped_to_the_image(script, via, tmp_path):
    change(via, lambda data: first_region(data)["shape_attributes"].update(all_points_x=[-3, 50, 50, -3]))
    train, _ = script.convert_dataset(via, tmp_path / "out")
    assert train["annotations"][0]["bbox"] == [0, 5.5, 40, 10]


def test_in_place_and_again(script, via):
    script.convert_dataset(via, via)
    before = (via / "annotations" / "instances_train.json").read_text()
    script.convert_dataset(via, via)
    assert (via / "annotations" / "instances_train.json").read_text() == before
    (via / "annotations" / "instances_train.json").write_text("{}")
    with pytest.raises(UserError, match="not made by this script"):
        script.convert_dataset(via, via)
    script.convert_dataset(via, via, overwrite=True)
    assert (via / "annotations" / "instances_train.json").read_text() == before


def points(**changes):
    return lambda data: first_region(data)["shape_attributes"].update(changes)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda data: {"x": 1}, "not VIA's JSON"),
        (lambda data: {"images": [], "annotations": []}, "COCO JSON already"),
        (points(name="circle"), "a.jpg, region 0: its shape is 'circle'; expected 'polygon' or 'rect'"),
        (points(all_points_x=[1, 2]), "region 0: bad coordinates"),
        (points(all_points_x=["a", 2, 3, 4]), "region 0: bad coordinates"),
        (points(all_points_x=[1, 2], all_points_y=[1, 2]), "a polygon of 2 points; expected at least 3"),
        (points(all_points_x=[90, 95, 95, 90]), "lies outside of the image, which is 40x30"),
        (points(all_points_x=[7, 7, 7, 7]), "covers no pixel"),
        (lambda data: data["a.jpg1"].update(filename="b.jpg"), "b.jpg: no such file"),
        (lambda data: data["a.jpg1"].update(filename="../val/c.jpg"), "lies outside of"),
        (lambda data: data.update(again=copy.deepcopy(data["a.jpg1"])), "'?a.jpg'? occurs more than once"),
    ],
)
def test_bad_input_writes_nothing(script, via, tmp_path, capsys, edit, expected):
    change(via, edit)
    assert script.main(["--input", str(via), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert re.search(expected, message), message
    assert message.count("\n") == 1
    assert str(via) in message
    assert not (tmp_path / "out").exists()


def test_broken_files(script, via, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        script.convert_dataset(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        script.convert_dataset(tmp_path, tmp_path / "out")
    image = via / "train" / "a.jpg"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(UserError, match=r"a\.jpg: not a readable image"):
        script.convert_dataset(via, tmp_path / "out")
    (via / "train" / "via_region_data.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        script.convert_dataset(via, tmp_path / "out")


def test_attribute_that_is_missing(script, via, tmp_path):
    with pytest.raises(UserError, match="its attribute 'kind' is None; expected the name of a category"):
        script.convert_dataset(via, tmp_path / "out", attribute="kind")


def test_real_balloons_from_the_command_line(repo_dir, shared_dir, tmp_path):
    command = [sys.executable, str(repo_dir / "datasets" / "prepare_balloon.py")]
    paths = ["--input", str(shared_dir / "data" / "balloon"), "--output", str(tmp_path)]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train: 61 images, 255 objects" in done.stdout
    assert "val: 13 images, 50 objects" in done.stdout
    assert check_coco_json(tmp_path / "annotations" / "instances_val.json", tmp_path / "val").objects == 50
