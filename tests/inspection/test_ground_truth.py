"""Where an image's annotation is found."""

import json
import shutil
from pathlib import Path

import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.inspection import records_for
from d2_maskrcnn.inspection.ground_truth import dataset_records, truth_of


def test_no_images(cfg):
    assert records_for([], cfg) == []


@pytest.mark.parametrize("split", ["TRAIN", "TEST"])
def test_images_are_known_by_their_path_not_by_their_name(cfg, split):
    """The training and the test set both have a ``000001.png``."""
    known = dataset_records(cfg.DATASETS[split][0])[0]
    (found,) = records_for([known["file_name"]], cfg)
    assert found["annotations"] == known["annotations"]


def test_an_annotation_file_finds_images_by_name(cfg, tiny_shapes, tmp_path):
    known = dataset_records(cfg.DATASETS.TEST[0])[0]
    shutil.copy(known["file_name"], tmp_path)
    name = Path(known["file_name"]).name
    (found,) = records_for([tmp_path / name], cfg, str(tiny_shapes / "annotations" / "instances_val.json"))
    assert len(truth_of(found)) == len(known["annotations"])


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
    (found,) = records_for([record["file_name"]], cfg, str(path))
    assert "annotations" not in found
