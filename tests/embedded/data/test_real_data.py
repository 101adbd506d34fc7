"""Real photographs and annotations; skipped if they are not beside the checkout."""

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import convert_to_coco_dict, register_coco_instances
from detectron2.data.detection_utils import read_image

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def coco_subset(shared_dir):
    root = shared_dir / "data" / "coco_subset"
    for split in ("train", "val"):
        json_file = root / "annotations" / f"instances_{split}2017.json"
        register_coco_instances(f"subset_{split}", {}, json_file, root / f"{split}2017")
    return root


@pytest.mark.parametrize(("split", "images", "instances", "crowd"), [("train", 337, 2838, 28), ("val", 206, 1786, 21)])
def test_all_of_it_is_loaded(coco_subset, split, images, instances, crowd):
    records = DatasetCatalog.get(f"subset_{split}")
    annotations = [anno for record in records for anno in record["annotations"]]
    assert len(records) == images
    assert len(annotations) == instances
    assert sum(anno["iscrowd"] for anno in annotations) == crowd
    # The categories of real COCO files are those of the built-in metadata.
    meta, builtin = MetadataCatalog.get(f"subset_{split}"), MetadataCatalog.get("coco_2017_val")
    assert meta.thing_classes == builtin.thing_classes
    assert meta.thing_dataset_id_to_contiguous_id == builtin.thing_dataset_id_to_contiguous_id


def test_converting_back_keeps_every_mask(coco_subset):
    converted = convert_to_coco_dict("subset_val")
    ours, original = COCO(), COCO(coco_subset / "annotations" / "instances_val2017.json")
    ours.dataset = converted
    ours.createIndex()
    assert len(ours.anns) == len(original.anns)
    for image_id in sorted(original.imgs)[:40]:
        for mine, theirs in zip(ours.imgToAnns[image_id], original.imgToAnns[image_id], strict=True):
            assert mine["category_id"] == theirs["category_id"]
            assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=2e-3)
            np.testing.assert_array_equal(ours.annToMask(mine), original.annToMask(theirs))


def test_masks_and_boxes_agree_after_augmentation(coco_subset):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    mapper = DatasetMapper(cfg)
    np.random.seed(0)
    checked = 0
    for record in DatasetCatalog.get("subset_train")[:12]:
        instances = mapper(record)["instances"]
        drawn = instances.gt_masks.get_bounding_boxes().tensor
        # Annotators' boxes are tight around their polygons, to a pixel or two of the scaled image.
        close = (drawn - instances.gt_boxes.tensor).abs().amax(dim=1) < 6
        assert close.float().mean() > 0.9 if len(close) else True
        checked += len(close)
    assert checked > 50


def test_every_image_has_three_channels(coco_subset):
    for path in sorted((coco_subset / "val2017").iterdir()):
        assert read_image(path, "BGR").shape[2] == 3


def test_a_loader_with_workers(coco_subset):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.TRAIN = ("subset_train",)
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.MIN_SIZE_TRAIN = (100,)
    loader = iter(build_detection_train_loader(cfg))
    for _ in range(3):
        batch = next(loader)
        assert len({record["width"] > record["height"] for record in batch}) == 1
        for record in batch:
            classes = record["instances"].gt_classes
            assert len(classes) == 0 or (classes.min() >= 0 and classes.max() < 80)
            assert record["image"].dtype == torch.uint8


def test_integer_annotations_of_labelme(shared_dir):
    root = shared_dir / "data" / "labelme_voc3" / "data_dataset_coco"
    register_coco_instances("labelme", {}, root / "annotations.json", root)
    records = DatasetCatalog.get("labelme")
    assert len(records) == 3
    mapper = DatasetMapper(True, augmentations=[], image_format="BGR", use_instance_mask=True)
    for record in records:
        result = mapper(record)
        assert result["image"].shape == (3, record["height"], record["width"])
        instances = result["instances"]
        assert len(instances) == len(record["annotations"]) > 0
        drawn = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(drawn, instances.gt_boxes.tensor, atol=2.0, rtol=0)
