import json
import shutil
from pathlib import Path

import pytest

from d2_maskrcnn.cli.main import main
from d2_maskrcnn.data import check_coco_json
from d2_maskrcnn.data.own_data import guess_image_folder


@pytest.mark.parametrize("place", ["beside the images", "elsewhere"])
def test_the_parts_can_be_trained_on(tiny_shapes, tmp_path, capsys, place):
    shapes = shutil.copytree(tiny_shapes, tmp_path / "data" / "shapes")
    source = shapes / "annotations" / "instances_train.json"
    output = shapes / "split" if place == "beside the images" else tmp_path / "elsewhere" / "a" / "split"
    options = ["--images", str(shapes / "train"), "--output", str(output), "--shares", "75", "25"]
    assert main(["split", str(source), *options]) == 0
    shown = capsys.readouterr().out
    assert "train images" in shown and str(output / "instances_val.json") in shown
    files = [output / "instances_train.json", output / "instances_val.json"]
    parts = [check_coco_json(path, guess_image_folder(path, "KEY")).table for path in files]
    assert [len(part.images) for part in parts] == [9, 3]
    assert sum(len(part.annotations) for part in parts) == len(json.loads(source.read_text())["annotations"])
    name = json.loads(files[0].read_text())["images"][0]["file_name"]
    assert name.startswith("train/") if place == "beside the images" else name.startswith(str(shapes))


def test_the_source_is_not_replaced(tiny_shapes, tmp_path, capsys):
    source = Path(shutil.copy(tiny_shapes / "annotations" / "instances_train.json", tmp_path))
    before = source.read_bytes()
    images = ["--images", str(tiny_shapes / "train")]
    assert main(["split", str(source), "--output", str(tmp_path), "--overwrite", *images]) == 2
    assert "instances_train.json: is an annotation file of" in capsys.readouterr().err
    assert source.read_bytes() == before and not (tmp_path / "instances_val.json").exists()


def test_nothing_is_overwritten_without_being_asked(tiny_shapes, tmp_path, capsys):
    command = ["split", str(tiny_shapes / "annotations" / "instances_train.json"), "--output", str(tmp_path)]
    (tmp_path / "instances_val.json").write_text("mine")
    assert main(command) == 2
    assert "instances_val.json: exists already; name another --output folder" in capsys.readouterr().err
    assert (tmp_path / "instances_val.json").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert "images" in json.loads((tmp_path / "instances_val.json").read_text())


def test_parts_in_the_folder_of_the_dataset_are_mentioned(tiny_shapes, tmp_path, capsys):
    shapes = shutil.copytree(tiny_shapes, tmp_path / "shapes")
    source = (shapes / "annotations" / "instances_train.json").rename(shapes / "annotations.json")
    assert main(["split", str(source), "--images", str(shapes / "train"), "--output", str(shapes)]) == 0
    assert f"commands that are given {shapes} may read them in its place" in capsys.readouterr().out
