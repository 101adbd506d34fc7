import logging
import re
import shutil

import pytest

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import register_own_data
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog


def cfg_with(**data):
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco_2017_train",), ("coco_2017_val",)
    for key, value in data.items():
        cfg.D2_MASKRCNN.DATA[key] = str(value)
    return cfg


def test_nothing_named_changes_nothing():
    cfg = cfg_with()
    before = cfg.dump()
    register_own_data(cfg)
    assert cfg.dump() == before


def test_both_pairs_take_the_place_of_the_datasets(coco_folder):
    paths = {"JSON": coco_folder.json_file, "IMAGES": coco_folder.images}
    cfg = cfg_with(**{f"{split}_{key}": path for split in ("TRAIN", "VAL") for key, path in paths.items()})
    cfg.freeze()
    register_own_data(cfg)
    assert cfg.is_frozen()
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST
    (name,) = cfg.DATASETS.TRAIN
    assert re.fullmatch(r"train(_\d+)?", name)
    assert len(DatasetCatalog.get(name)) == 4
    assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get(name).evaluator_type == "coco"
    register_own_data(cfg)  # a second time changes nothing
    assert (name,) == cfg.DATASETS.TRAIN


def test_training_data_alone_leaves_nothing_of_coco_to_evaluate(coco_folder, caplog):
    cfg = cfg_with(TRAIN_JSON=coco_folder.json_file, TRAIN_IMAGES=coco_folder.images)
    with caplog.at_level(logging.WARNING):
        register_own_data(cfg)
    assert cfg.DATASETS.TEST == ()
    assert "coco_2017_val removed from DATASETS.TEST" in caplog.text


def test_validation_data_alone_keeps_the_training_data(coco_folder):
    cfg = cfg_with(VAL_JSON=coco_folder.json_file, VAL_IMAGES=coco_folder.images)
    register_own_data(cfg)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",)
    assert cfg.DATASETS.TEST[0].startswith("train")  # of instances_train.json


def test_relative_paths_in_the_working_directory_and_in_the_datasets_folder(coco_folder, tmp_path, monkeypatch):
    relative = {"TRAIN_JSON": "pets/annotations/instances_train.json", "TRAIN_IMAGES": "pets/train"}
    names = []
    for folder, datasets in ((tmp_path, "elsewhere"), (tmp_path / "pets", str(tmp_path))):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("DETECTRON2_DATASETS", datasets)
        cfg = cfg_with(**relative)
        register_own_data(cfg)
        names += cfg.DATASETS.TRAIN
    assert names[0] == names[1]  # the same files: the same name


@pytest.mark.parametrize(
    ("file", "role", "expected"),
    [
        ("instances_val1917.json", "TRAIN", "val1917"),
        ("test1917.json", "VAL", "test1917"),
        ("_annotations.coco.json", "TRAIN", "train"),
        ("pets.json", "VAL", "val"),
    ],
)
def test_names_are_plain_and_a_name_that_is_taken_gets_a_number(coco_folder, file, role, expected):
    names = []
    for folder in ("first", "second", "first"):
        path = coco_folder.images.parent / folder / file
        path.parent.mkdir(exist_ok=True)
        shutil.copy(coco_folder.json_file, path)
        cfg = cfg_with(**{f"{role}_JSON": path, f"{role}_IMAGES": coco_folder.images})
        register_own_data(cfg)
        names += cfg.DATASETS["TEST" if role == "VAL" else "TRAIN"]
    assert names[0] == names[2] != names[1]
    assert all(re.fullmatch(rf"{expected}(_\d+)?", name) for name in names)


@pytest.mark.parametrize("place", ["train", "annotations", "images", "annotations/images", "."])
def test_folder_of_the_images_is_found_from_the_json(coco_folder, place):
    root = coco_folder.images.parent
    (root / place).mkdir(exist_ok=True)
    for image in list(coco_folder.images.iterdir()):
        image.rename(root / place / image.name)
    cfg = cfg_with(TRAIN_JSON=coco_folder.json_file)
    register_own_data(cfg)
    assert (root / place).samefile(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).image_root)


def test_folder_of_the_images_is_not_found(coco_folder):
    for image in coco_folder.images.iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"0\.jpg, 1\.jpg.*: name the folder with D2_MASKRCNN\.DATA\.TRAIN_IMAGES$"):
        register_own_data(cfg_with(TRAIN_JSON=coco_folder.json_file))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"TRAIN_IMAGES": "{root}"}, r"TRAIN_IMAGES is .* but D2_MASKRCNN\.DATA\.TRAIN_JSON is empty"),
        (
            {"VAL_JSON": "nowhere.json"},
            r"'nowhere.json' but there is no nowhere.json and no .*nowhere.json",
        ),
        ({"VAL_JSON": "{root}/nowhere.json"}, r"VAL_JSON is .* but there is no \S*nowhere.json: give a path"),
        ({"VAL_JSON": "{root}"}, "is a folder: expected a COCO JSON file"),
        ({"VAL_JSON": "{json}", "VAL_IMAGES": "{json}"}, "is not a folder: expected the image folder"),
        ({"VAL_JSON": "{json}", "VAL_IMAGES": "{root}/x"}, "VAL_IMAGES is .* but there is no"),
    ],
)
def test_bad_paths(coco_folder, data, expected):
    places = {"root": coco_folder.images.parent, "json": coco_folder.json_file}
    with pytest.raises(UserError, match=expected):
        register_own_data(cfg_with(**{key: value.format(**places) for key, value in data.items()}))
