"""Match images with the records of datasets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data.ground_truth import ground_truth_of
from d2_maskrcnn.inspection import records_for
from d2_maskrcnn.inspection.records import available_records
from detectron2.structures import BoxMode


def test_no_images(cfg):
    assert records_for([], cfg) == []


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_images_are_matched_by_path_not_by_name(cfg, split):
    """The training and the test set both have a ``000001.png``."""
    known = available_records(cfg.DATASETS[split][0])[0]
    (result,) = records_for([known["file_name"]], cfg)
    assert result["annotations"] == known["annotations"]


def test_images_match_an_annotation_file_by_the_end_of_their_path(cfg, tiny_shapes, tmp_path):
    known = available_records(cfg.DATASETS.TEST[0])[0]
    shutil.copy(known["file_name"], tmp_path)
    name = Path(known["file_name"]).name
    (result,) = records_for([tmp_path / name], cfg, str(tiny_shapes / "annotations" / "instances_val.json"))
    assert len(ground_truth_of(result)) == len(known["annotations"])


def test_images_with_the_same_name_in_several_folders(cfg, tiny_shapes, tmp_path):
    content = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    first, second = content["images"][:2]
    counts = {
        folder: sum(a["image_id"] == image["id"] for a in content["annotations"])
        for folder, image in (("a", first), ("b", second))
    }
    for folder, image in (("a", first), ("b", second)):
        (tmp_path / folder / "img").mkdir(parents=True)
        shutil.copy(tiny_shapes / "val" / image["file_name"], tmp_path / folder / "img" / "x.png")
        image["file_name"] = f"{folder}/img/x.png"
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "a" / "img" / "x.png", tmp_path / "c")
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    files = [tmp_path / "a" / "img" / "x.png", tmp_path / "b" / "img" / "x.png", tmp_path / "c" / "x.png"]
    a, b, c = records_for(files, cfg, str(path))
    assert {"a": len(a["annotations"]), "b": len(b["annotations"])} == counts
    assert "annotations" not in c


def test_annotation_files_that_do_not_fit(cfg, tiny_shapes, record, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text("no JSON")
    with pytest.raises(UserError, match=r"annotations\.json"):
        records_for([record["file_name"]], cfg, str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match=r"annotations\.json"):
        records_for([record["file_name"]], cfg, str(path))
    content = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    for image in content["images"]:
        image["width"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is 64x64, the JSON says 128x64"):
        records_for([record["file_name"]], cfg, str(path))
    content["images"], content["annotations"] = [], []
    path.write_text(json.dumps(content))
    (result,) = records_for([record["file_name"]], cfg, str(path))
    assert "annotations" not in result


def test_boxes_are_converted_from_their_own_mode(record):
    boxes = ground_truth_of(record).boxes
    corners = [{**a, "bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS}
               for a, box in zip(record["annotations"], boxes, strict=True)]  # fmt: skip
    np.testing.assert_allclose(ground_truth_of({**record, "annotations": corners}).boxes, boxes)
    x, y, w, h = record["annotations"][0]["bbox"]
    np.testing.assert_allclose(boxes[0], [x, y, x + w, y + h])
