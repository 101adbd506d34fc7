"""Conversions from the first file to the last: round trips, what is protected, and the command."""

import json
import os

import numpy as np
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.data import convert
from d2_maskrcnn.data.coco.checks import check_coco_json
from d2_maskrcnn.data.formats import read
from d2_maskrcnn.data.formats.image_references import safe_name
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tests.data.formats.conftest import is_cat_and_dog, make_source, pixels_of, save_image

TARGETS = ("coco", "yolo", "labelme", "voc", "cvat", "label-studio")


@pytest.fixture
def hard_case(tmp_path):
    """COCO data of two splits: a crowd, a hole, two contours, an object beyond the border, an image without objects."""
    ring = np.zeros((30, 40), bool)
    ring[2:12, 2:12], ring[5:8, 5:8] = True, False
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate(([2], ring.T.ravel(), [2]))))).tolist()
    hole = {"size": [30, 40], "counts": runs}
    crowd = {"size": [30, 40], "counts": [0, 60, 1140]}
    objects = {
        "train": [
            {"category_id": 7, "segmentation": hole},
            {"category_id": 3, "segmentation": [[20, 3, 26, 3, 26, 9], [30.5, 3, 36, 3, 36, 9.25, 31, 12]]},
            {"category_id": 3, "segmentation": [[-4, 20, 6, 20, 6, 34, -4, 34]]},
            {"category_id": 3, "segmentation": crowd, "iscrowd": 1},
        ],
        "val": [],
    }
    for split, annotations in objects.items():
        save_image(tmp_path / "source" / split / "a.png", 6 if split == "val" else 1)
        data = {
            "images": [{"id": 11, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": [{"id": i + 5, "image_id": 11, **each} for i, each in enumerate(annotations)],
            "categories": [{"id": 3, "name": "zebra"}, {"id": 7, "name": "ant \u00e9"}, {"id": 9, "name": "unused"}],
        }
        path = tmp_path / "source" / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
    return tmp_path / "source"


@pytest.mark.parametrize("to", TARGETS)
def test_round_trip(hard_case, tmp_path, to):
    there = convert(hard_case, to, tmp_path / to)
    back = convert(tmp_path / to, "coco", tmp_path / "back")
    before, after = read(hard_case), read(tmp_path / "back")
    assert [(i.name, i.split, i.width, i.height) for i in after.images] == [
        ("a.png", "train", 40, 30),
        ("a.png", "val", 30, 40),
    ] or to == "voc"
    assert [each.name for each in after.categories] == ["zebra", "ant \u00e9", "unused"]
    kept = 3 if to in ("yolo", "voc") else 4  # without the crowd
    assert (there.annotations, back.annotations, len(there.dropped)) == (kept, kept, 4 - kept)
    expected, found = pixels_of(before)[:kept], pixels_of(after)
    for name, mask in expected:
        assert any(name == other and (mask == pixels).all() for other, pixels in found)
    assert sum(each.iscrowd for each in after.annotations) == kept - 3
    assert not back.dropped


def test_output_is_valid_coco_and_keeps_ids(hard_case, tmp_path):
    done = convert(hard_case, "coco", tmp_path / "out", copy_images=True)
    assert [path.name for path in done.files] == ["instances_train.json", "instances_val.json"]
    data = json.loads(done.files[0].read_text())
    assert [image["id"] for image in data["images"]] == [11]
    assert [each["id"] for each in data["annotations"]] == [5, 6, 7, 8]
    assert [each["id"] for each in data["categories"]] == [3, 7, 9]
    assert check_coco_json(done.files[0], tmp_path / "out" / "train").table.is_crowd.tolist().count(True) == 1
    assert not (tmp_path / "out" / "train" / "a.png").is_symlink()
    assert (done.splits, done.crowds) == ({"train": 1, "val": 1}, 1)


def test_ultralytics_data_yaml(hard_case, tmp_path):
    convert(hard_case, "yolo", tmp_path / "out")
    assert (tmp_path / "out" / "data.yaml").read_text() == (
        "train: images/train\nval: images/val\nnames:\n  0: zebra\n  1: ant \u00e9\n  2: unused\n"
    )
    lines = (tmp_path / "out" / "labels" / "train" / "a.txt").read_text().splitlines()
    values = np.array([float(each) for line in lines for each in line.split()[1:]])
    assert len(lines) == 3
    assert values.min() >= 0 and values.max() <= 1
    assert (tmp_path / "out" / "labels" / "val" / "a.txt").read_text() == ""


def test_nothing_is_overwritten(tmp_path):
    source = make_source(tmp_path / "labelme", "labelme")
    out = tmp_path / "out"
    convert(source, "labelme", out)
    before = (source / "a.png").read_bytes()
    (out / "a.json").write_text("mine")
    with pytest.raises(UserError, match=r"a\.png: exists \(3 of 3 files do\)"):
        convert(source, "labelme", out)
    assert (out / "a.json").read_text() == "mine"
    convert(source, "labelme", out, overwrite=True, copy_images=True)
    assert (source / "a.png").read_bytes() == before
    assert is_cat_and_dog(read(out))
    # A file of the source is never replaced, whatever the name of its folder.
    (tmp_path / "link").symlink_to(source)
    os.rename(source / "labelme.json", source / "a.json")
    for folder in (source, tmp_path / "link", tmp_path / "out" / ".." / "labelme"):
        with pytest.raises(UserError, match="belongs to the source, which is never changed"):
            convert(source / "a.json", "labelme", folder, overwrite=True)
        with pytest.raises(UserError, match=r"inside the source .* would be read as a part of the dataset"):
            convert(source, "labelme", folder / "new", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file; expected a folder"):
        convert(source, "coco", tmp_path / "file")


def test_in_place_the_images_stay(tmp_path):
    folder = tmp_path / "balloon"
    for split in ("train", "val"):
        make_source(folder / split, "via_1")
    done = convert(folder, "coco", folder)
    assert [path.name for path in done.files] == ["instances_train.json", "instances_val.json"]
    assert not (folder / "train" / "a.png").is_symlink()
    assert len(check_coco_json(done.files[0], folder / "train").table.annotations) == 2


def test_real_balloons(shared_dir, tmp_path):
    done = convert(shared_dir / "data" / "balloon", "coco", tmp_path, category="balloon")
    assert (done.splits, done.annotations, done.categories) == ({"train": 61, "val": 13}, 305, ["balloon"])
    val = check_coco_json(tmp_path / "annotations" / "instances_val.json", tmp_path / "val")
    assert len(val.table.annotations) == 50
    first = json.loads(done.files[0].read_text())["annotations"][0]
    assert first["bbox"] == [994.5, 619.5, 451.0, 547.0]
    assert first["segmentation"][0][:4] == [1020.5, 963.5, 1000.5, 899.5]


def test_names_from_outside_never_leave_the_output(tmp_path):
    for name in ("../a.png", "/etc/a.png", "C:/a.png", "..\\a.png", "a/../../b.png", "", "\0"):
        assert safe_name(name) is None
    source = make_source(tmp_path / "cvat", "cvat")
    text = (source / "cvat.xml").read_text().replace("<image ", '<image subset="../../x" ')
    (source / "cvat.xml").write_text(text.replace('"a.png"', '"../../a.png"'))
    convert(source, "coco", tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "images" / "a.png").is_file()


def test_equal_stems_do_not_share_a_label_file(tmp_path):
    for name in ("a.png", "a.jpg"):
        save_image(tmp_path / "in" / name)
    images = [{"id": i, "file_name": name} for i, name in enumerate(("a.png", "a.jpg"))]
    square = {"category_id": 1, "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]]}
    annotations = [{"id": i + 1, "image_id": i, **square} for i in range(2)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "in" / "a.json").write_text(json.dumps(data))
    for to in ("yolo", "labelme", "voc"):
        assert len(read(convert(tmp_path / "in", to, tmp_path / to).output).annotations) == 2


def test_index_masks_of_many_and_overlapping_objects(tmp_path):
    source = make_source(tmp_path / "coco", "coco")
    path = source / "coco.json"
    data = json.loads(path.read_text())
    squares = [(x, y) for x in range(0, 40, 2) for y in range(0, 30, 2)]
    data["annotations"] = [
        {"id": i + 1, "image_id": 3, "category_id": 4, "segmentation": [[x, y, x + 2, y, x + 2, y + 2, x, y + 2]]}
        for i, (x, y) in enumerate(squares)
    ]
    path.write_text(json.dumps(data))
    done = convert(source, "voc", tmp_path / "many")
    assert not done.dropped and not done.notes
    assert len(read(tmp_path / "many").annotations) == len(squares) == 300
    whole = {"id": 999, "image_id": 3, "category_id": 6, "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]]}
    data["annotations"].append(whole)
    path.write_text(json.dumps(data))
    done = convert(source, "voc", tmp_path / "hidden")
    assert [each.reason for each in done.dropped] == ["hidden by smaller objects, which VOC cannot express"]
    assert done.annotations == 300
    data["annotations"] = [whole, data["annotations"][0], {**data["annotations"][0], "id": 5}]
    data["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4]]
    data["annotations"][1]["segmentation"] = [[0, 0, 2, 0, 2, 2, 0, 2]]
    data["annotations"][2]["segmentation"] = [[20, 20, 24, 20, 24, 24, 20, 24]]
    path.write_text(json.dumps(data))
    done = convert(source, "voc", tmp_path / "cut")
    assert list(done.notes.values()) == [1] and "on average 25.0% of their pixels" in done.table()


@pytest.mark.parametrize(("to", "name"), [("labelme", "__ignore__"), ("voc", "_background_")])
def test_objects_of_classes_with_reserved_names_are_listed(tmp_path, to, name):
    source = make_source(tmp_path / "coco", "coco")
    path = source / "coco.json"
    data = json.loads(path.read_text())
    lost = data["categories"][0]["id"]
    data["categories"][0]["name"] = name
    path.write_text(json.dumps(data))
    count = sum(each["category_id"] == lost for each in data["annotations"])
    done = convert(source, to, tmp_path / "out")
    assert len(done.dropped) == count > 0 and all(name in each.reason for each in done.dropped)
    assert done.annotations == len(read(done.output).annotations) == len(data["annotations"]) - count


def test_registered_datasets(tmp_path):
    path = save_image(tmp_path / "a.png")
    record = {
        "file_name": str(path), "image_id": "x1", "height": 30, "width": 40,
        "annotations": [{"bbox": [2, 3, 12, 11], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1,
                         "segmentation": [np.array([2, 3, 12, 3, 12, 11, 2, 11])]}],
    }  # fmt: skip
    DatasetCatalog.register("pets_in_python", lambda: [record])
    MetadataCatalog.get("pets_in_python").thing_classes = ["dog", "cat"]
    try:
        done = convert("pets_in_python", "coco", tmp_path / "out")
    finally:
        DatasetCatalog.remove("pets_in_python")
    dataset = read(done.output)
    assert [each.bbox for each in dataset.annotations] == [[2, 3, 10, 8]]
    assert [name for name, _ in pixels_of(dataset)] == ["cat"]


def test_the_command(tmp_path, capsys):
    source = make_source(tmp_path / "labelme", "labelme")
    arguments = ["convert", str(source), "--to", "coco", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "images     1" in printed
    assert "classes    2: cat, dog" in printed
    assert main(arguments) == 2
    assert "exists (2 of 2 files do)" in capsys.readouterr().err
    assert "--category" not in printed
    (source / "b.json").write_text("{")
    assert main([*arguments, "--overwrite"]) == 2
    printed = capsys.readouterr()
    assert "a file that cannot be read" in printed.out
    assert printed.err.count("\n") == 1
    assert "1 entries" in printed.err
    assert is_cat_and_dog(read(tmp_path / "out"))
    (source / "a.png").unlink()
    assert main([*arguments, "--overwrite"]) == 2
    assert "no image that can be used" in capsys.readouterr().err


def test_the_command_names_the_option_for_objects_without_a_class(tmp_path, capsys):
    save_image(tmp_path / "a.png")
    shape = {"name": "rect", "x": 1, "y": 1, "width": 8, "height": 6}
    region = {"shape_attributes": shape, "region_attributes": {}}
    (tmp_path / "via.json").write_text(json.dumps({"a": {"filename": "a.png", "size": 1, "regions": [region]}}))
    arguments = ["convert", str(tmp_path / "via.json"), "--to", "coco", "--output", str(tmp_path / "out")]
    main(arguments)
    assert "called object, as without a class in SOURCE; --category NAME names it" in capsys.readouterr().out
    main([*arguments, "--overwrite", "--category", "balloon"])
    assert "--category" not in capsys.readouterr().out
