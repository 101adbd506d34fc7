from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import MaskRCNNMapper, build_checked_test_loader, register_own_data
from d2_maskrcnn.video.sources.images import ImageSource
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper


@pytest.fixture
def cfg(coco_folder):
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (60,), 60
    data = cfg.D2_MASKRCNN.DATA
    data.TRAIN_JSON = data.VAL_JSON = str(coco_folder.json_file)
    data.TRAIN_IMAGES = data.VAL_IMAGES = str(coco_folder.images)
    register_own_data(cfg)
    return cfg


def cut_off(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["cutout.png", "float.tif", "deep.png", "turned.jpg"])
def test_training_and_demo_decode_the_same_pixels(cfg, tmp_path, name):
    gray = np.tile(np.linspace(0, 1, 80, dtype=np.float32), (60, 1))
    color = np.dstack([gray * 255, gray * 0, 255 - gray * 255]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    {
        "cutout.png": lambda path: Image.fromarray(np.dstack([color, color[..., 0]])).save(path),
        "float.tif": lambda path: Image.fromarray(gray).save(path),
        "deep.png": lambda path: Image.fromarray((gray * 65535).astype(np.uint16)).save(path),
        "turned.jpg": lambda path: Image.fromarray(color).save(path, exif=exif),
    }[name](tmp_path / name)
    (frame,) = ImageSource([tmp_path / name])
    cfg.INPUT.MIN_SIZE_TEST = 0  # no resizing
    sample = MaskRCNNMapper(cfg, is_train=False)({"file_name": str(tmp_path / name), "image_id": 1})
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), frame.image)
    assert (sample["height"], sample["width"]) == frame.image.shape[:2]
    assert frame.image.std() > 50


DAMAGES = [
    (lambda path: path.unlink(), "no such file"),
    (lambda path: path.write_bytes(b""), "not a readable image"),
    (lambda path: path.write_bytes(b"no image at all"), "not a readable image"),
    (cut_off, "not a readable image, corrupt or truncated"),
    (lambda path: Image.new("RGB", (41, 30)).save(path), "is 41x30, the JSON says 40x30"),
    (lambda path: Image.new("RGB", (30, 40)).save(path), r"30x40, the JSON says 40x30 \(turned by its EXIF"),
]


def test_a_good_image_becomes_a_model_input(cfg):
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    sample = MaskRCNNMapper(cfg, is_train=True)(record)
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 60, 80)
    assert sample["instances"].image_size == (60, 80)
    assert len(sample["instances"]) == 1
    assert "annotations" in record
    assert "instances" not in MaskRCNNMapper(cfg, is_train=False)(record)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("annotations", [[], [{"iscrowd": 1}]])
def test_an_image_without_objects_has_empty_instances_with_masks(cfg, mask_format, crop, annotations):
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.CROP.ENABLED = mask_format, crop
    record = {**DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0], "annotations": annotations}
    sample = MaskRCNNMapper(cfg, is_train=True)(record)
    instances = sample["instances"]
    assert instances.image_size == tuple(sample["image"].shape[-2:])
    assert len(instances) == len(instances.gt_boxes) == len(instances.gt_classes) == len(instances.gt_masks) == 0


@pytest.mark.parametrize(("damage", "expected"), DAMAGES)
def test_damaged_images_are_named(cfg, damage, expected):
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    path = Path(record["file_name"])
    damage(path)
    with pytest.raises(UserError, match=expected) as error:
        MaskRCNNMapper(cfg, is_train=True)(record)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, "far outside of its image"),
        ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "could not convert"),
        ({"segmentation": [[1, 2, 3, 4]]}, "expected polygons"),
        ({"segmentation": None}, "an annotation of this image has no segmentation"),
        ({"bbox": None}, "an annotation of this image has no bbox"),
    ],
)
def test_annotations_of_unchecked_datasets(cfg, changes, expected):
    """Datasets that are registered in Python reach the mapper unchecked."""
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    for key, value in changes.items():
        if value is None:
            del record["annotations"][0][key]
        else:
            record["annotations"][0][key] = value
    with pytest.raises(UserError, match=expected) as error:
        MaskRCNNMapper(cfg, is_train=True)(record)
    assert str(error.value).startswith(record["file_name"])


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crop", [False, True])
def test_equals_detectron2s_mapper(cfg, tiny_shapes, mask_format, crop):
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(tiny_shapes / "annotations" / "instances_train.json")
    cfg.D2_MASKRCNN.DATA.TRAIN_IMAGES = ""
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.CROP.ENABLED, cfg.INPUT.MIN_SIZE_TRAIN = mask_format, crop, (50, 70)
    register_own_data(cfg)
    mappers = MaskRCNNMapper(cfg, is_train=True), DatasetMapper(cfg, is_train=True)
    for number, record in enumerate(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])):
        samples = []
        for mapper in mappers:
            np.random.seed(number)
            samples.append(mapper(record))
        ours, theirs = (sample["instances"] for sample in samples)
        assert torch.equal(samples[0]["image"], samples[1]["image"])
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)
        if mask_format == "bitmask" and len(theirs):
            assert torch.equal(ours.gt_masks.tensor, theirs.gt_masks.tensor)
        elif len(theirs):
            for one, other in zip(ours.gt_masks.polygons, theirs.gt_masks.polygons, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_polygons_of_points(cfg):
    """Detectron2 accepts polygons as (N, 2) arrays, and integers, which are not truncated."""
    record = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])[0]
    flat = MaskRCNNMapper(cfg, is_train=True)(record)
    polygon = np.array([[2, 3], [12, 3], [12, 11], [2, 11]])
    record["annotations"][0]["segmentation"] = [polygon]
    points = MaskRCNNMapper(cfg, is_train=True)(record)
    assert polygon.dtype == np.int64 and polygon.max() == 12
    assert {len(sample["instances"].gt_masks.polygons[0][0]) for sample in (flat, points)} == {8}
    widths = [np.ptp(sample["instances"].gt_masks.polygons[0][0][::2]) for sample in (flat, points)]
    assert widths == [20, 20]  # the image is enlarged twice


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_test_loader_are_one_line(cfg, coco_folder, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_checked_test_loader(cfg, cfg.DATASETS.TEST[0])
    assert len(loader) == 4
    assert [batch[0]["image_id"] for batch in loader] == [10, 11, 12, 13]
    (coco_folder.images / "2.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"^\S+2\.jpg: not a readable image.*$"):
        list(loader)
