import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError, read_image
from detectron2.structures import BitMasks, PolygonMasks


def config(**changes):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.merge_from_list([item for key, value in changes.items() for item in (key.replace("__", "."), value)])
    return cfg


@pytest.fixture
def records(tiny_coco):
    # The ids of categories stay 3 and 7: nothing is registered.
    return load_coco_json(tiny_coco.json_file, tiny_coco.images)


def test_for_inference(records):
    record = copy.deepcopy(records[0])
    result = DatasetMapper(config(), is_train=False)(record)
    assert record == records[0]
    assert set(result) == {"file_name", "height", "width", "image_id", "image"}
    assert (result["height"], result["width"], result["image_id"]) == (40, 60, 10)
    assert result["image"].shape == (3, 80, 120)
    assert result["image"].dtype == torch.uint8
    expected = T.ResizeTransform(40, 60, 80, 120).apply_image(read_image(record["file_name"], "BGR"))
    np.testing.assert_array_equal(result["image"].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize(("mask_format", "masks"), [("bitmask", BitMasks), ("polygon", PolygonMasks)])
def test_for_training(records, mask_format, masks, flip):
    cfg = config(INPUT__RANDOM_FLIP=flip, INPUT__MASK_FORMAT=mask_format, INPUT__FORMAT="RGB")
    mapper = DatasetMapper(cfg)
    for attempt in range(4):  # flipped and not
        np.random.seed(attempt)
        result = mapper(records[0])
        instances = result["instances"]
        assert set(result) == {"file_name", "height", "width", "image_id", "image", "instances"}
        assert instances.image_size == (40, 60)
        assert instances.gt_classes.tolist() == [3, 7]  # the crowd region is left out
        assert isinstance(instances.gt_masks, masks)
        # The drawn square is bright where its mask is, however the image was flipped.
        square = instances.gt_masks[0]
        bitmap = square.tensor[0] if mask_format == "bitmask" else BitMasks.from_polygon_masks(square, 40, 60).tensor[0]
        assert (result["image"][0][bitmap] == 250).all()
        box = instances.gt_boxes[0].tensor[0].tolist()
        rows, columns = np.nonzero(bitmap.numpy())
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_an_image_without_annotations(records):
    result = DatasetMapper(config())(records[2])
    assert len(result["instances"]) == 0
    assert result["instances"].gt_boxes.tensor.shape == (0, 4)
    del records[2]["annotations"]
    assert "instances" not in DatasetMapper(config())(records[2])


def test_without_masks(records):
    result = DatasetMapper(config(MODEL__MASK_ON=False))(records[0])
    assert not result["instances"].has("gt_masks")
    assert len(result["instances"]) == 2


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_cropping_makes_boxes_tight_around_masks(records, mask_format):
    pytest.importorskip("shapely")
    cfg = config(INPUT__CROP__ENABLED=True, INPUT__CROP__TYPE="absolute", INPUT__CROP__SIZE=[24, 34])
    cfg.INPUT.MASK_FORMAT = mask_format
    mapper = DatasetMapper(cfg)
    counts = set()
    for seed in range(30):
        np.random.seed(seed)
        instances = mapper(records[0])["instances"]
        counts.add(len(instances))
        assert (instances.gt_boxes.area() > 0).all()
        tight = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(instances.gt_boxes.tensor, tight)
    assert {1, 2} <= counts  # some crops cut an instance away
    no_crop = DatasetMapper(cfg, is_train=False)(records[0])
    assert no_crop["image"].shape == (3, 80, 120)


def test_the_same_seed_gives_the_same_result(records):
    mapper = DatasetMapper(config())
    results = []
    for _ in range(2):
        np.random.seed(11)
        results.append(torch.stack([mapper(records[0])["image"] for _ in range(6)]))
    assert torch.equal(*results)
    assert not all(torch.equal(results[0][0], image) for image in results[0])  # some are flipped


def test_a_mapper_can_be_pickled(records):  # as spawned workers need it
    mapper = DatasetMapper(config(), False)
    twin = pickle.loads(pickle.dumps(mapper))
    assert torch.equal(twin(records[0])["image"], mapper(records[0])["image"])


def test_explicit_arguments(records):
    mapper = DatasetMapper(True, augmentations=[T.RandomFlip(1.0), T.Resize((10, 20))], image_format="L")
    result = mapper(records[0])
    assert result["image"].shape == (1, 10, 20)
    assert not result["instances"].has("gt_masks")
    assert result["instances"].gt_boxes.tensor[0].tolist() == pytest.approx([46 / 3, 1.5, 56 / 3, 4.0])
    with pytest.raises(ValueError, match="recompute_boxes"):
        DatasetMapper(True, augmentations=[], image_format="L", recompute_boxes=True)


def test_semantic_labels_follow_the_image(records, tmp_path):
    labels = np.random.RandomState(0).randint(0, 5, (40, 60), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = records[0] | {"sem_seg_file_name": str(tmp_path / "labels.png")}
    result = DatasetMapper(True, augmentations=[T.RandomFlip(1.0)], image_format="BGR")(record)
    assert result["sem_seg"].dtype == torch.int64
    np.testing.assert_array_equal(result["sem_seg"].numpy(), labels[:, ::-1])
    assert "sem_seg" not in DatasetMapper(False, augmentations=[], image_format="BGR")(record)


def test_bad_images(records, tmp_path):
    mapper = DatasetMapper(config())
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        mapper(records[0] | {"file_name": str(tmp_path / "gone.png")})
    with pytest.raises(SizeMismatchError, match=r"10\.png"):
        mapper(records[0] | {"width": 61})


@pytest.mark.parametrize("key", ["MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
def test_what_is_not_supported_is_said(key):
    cfg = config()
    cfg.merge_from_list([key, True])
    with pytest.raises(ValueError, match=key):
        DatasetMapper(cfg)
