import json
import os
import subprocess
import sys

import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data.coco.reader import read_coco_json

EMPTY = '"images": [], "annotations": [], "categories": []'


def read(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    return read_coco_json(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["not JSON", "line 1, column 1", "truncated"]),
        ('{"images": [\n{"id": 1},', ["not JSON", "line 2, column 11"]),
        ("\udcff", ["not JSON", "byte 0 is not UTF-8"]),
        ('{"name": "caf\udce9"}', ["byte 13 is not UTF-8", "export it again as UTF-8"]),
        ("[]", ["not COCO JSON", "a list"]),
        ("3", ["not COCO JSON", "a number"]),
        ("{}", ["'images', 'annotations', 'categories' missing"]),
        ('{"images": [], "categories": []}', ["'annotations' missing", "it has 'images', 'categories'"]),
        ('{"images": {}, "annotations": [], "categories": []}', ["'images' is an object"]),
        ('{"images": [], "annotations": null, "categories": []}', ["'annotations' is null"]),
        ('{"a.jpg12": {"filename": "a.jpg", "regions": {}}}', ["VIA", "d2-maskrcnn convert"]),
        ('{"_via_settings": {}, "_via_img_metadata": {}}', ["VIA", "d2-maskrcnn convert"]),
        ('{"shapes": [], "imagePath": "a.jpg", "version": "4.0.0"}', ["LabelMe", "d2-maskrcnn convert"]),
        ('[{"image_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}]', ["detections"]),
        ('{"images": [], "annotations": [{"segments_info": []}], "categories": []}', ["panoptic"]),
        ('{"images": [], "annotations": [{"caption": "a cat"}]}', ["captions"]),
        ("[" * 100_000, ["nested too deeply"]),
        (f'{{{EMPTY}, "x": {"9" * 5000}}}', ["not JSON of annotations", "digits"]),
        (f'{{{EMPTY}, "annotations": [1]}}', ["the key 'annotations' occurs 2 times in one object"]),
        ('{"images": [{"id": 7, "width": 1, "width": 2}]}', ["'width' occurs 2 times in the object with id 7"]),
    ],
)
def test_files_that_are_not_coco_json(tmp_path, text, expected):
    with pytest.raises(UserError) as error:
        read(tmp_path, text)
    for part in [str(tmp_path / "a.json"), *expected]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.json")
    for name, expected in (
        ("other.json", "no such file; expected a JSON file"),
        ("nowhere/other.json", r"there is no folder .*nowhere"),
        (".", "it is a folder"),
        ("fifo.json", "it is a FIFO, device or socket"),
    ):
        with pytest.raises(UserError, match=expected):
            read_coco_json(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Äpfel 🍎"}]}
    assert read(tmp_path, json.dumps(data, ensure_ascii=False).encode(encoding)) == data


def test_whole_floats_of_rles_and_flags_are_normalized(tmp_path):
    rle = {"size": [2.0, 3.0], "counts": [1.0, 5]}
    annotations = [{"segmentation": rle, "iscrowd": True}, {"segmentation": {"size": [2.5, 3.0], "counts": "06"}}]
    data = read(tmp_path, json.dumps({"images": [], "categories": [], "annotations": annotations}))
    assert repr(data["annotations"]) == repr(
        [
            {"segmentation": {"size": [2, 3], "counts": [1, 5]}, "iscrowd": 1},
            {"segmentation": {"size": [2.5, 3], "counts": "06"}},
        ]
    )


def test_annotations_may_be_missing_from_a_test_set(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [], "categories": []}')
    assert read_coco_json(tmp_path / "a.json", annotations_required=False)["annotations"] == []


READ_AND_EVALUATE = """
import sys
import d2_maskrcnn
from d2_maskrcnn.data.coco.records import register_coco_json
from d2_maskrcnn.evaluation.evaluator import read_ground_truth
from detectron2.data import DatasetCatalog
path, folder = sys.argv[1:]
register_coco_json("named", path, folder)
DatasetCatalog.get("named")
print(ascii(read_ground_truth("named", folder)["categories"][0]["name"]))
"""


def test_names_in_a_locale_that_is_not_utf8(tmp_path):
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "\u00c4pfel"}]}
    (tmp_path / "a.json").write_bytes(json.dumps(data, ensure_ascii=False).encode())
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", READ_AND_EVALUATE, str(tmp_path / "a.json"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [r"'\xc4pfel'"]
