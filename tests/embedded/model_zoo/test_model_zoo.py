from pathlib import Path

import pytest
import yaml

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer

CONFIGS = Path(model_zoo.__file__).parent / "configs"
ENTRIES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("*/*.yaml") if path.parent.name != "parts")
MASK_R101 = "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml"


def test_the_zoo_has_what_the_plugin_can_build():
    assert len(ENTRIES) == 31
    assert MASK_R101 in ENTRIES


def test_a_config_of_the_zoo_is_detectron2s(shared_dir):
    expected = yaml.safe_load((shared_dir / "reference" / "mask_rcnn_R_101_FPN_3x.yaml").read_text())
    assert yaml.safe_load(model_zoo.get_config(MASK_R101).dump()) == expected


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_builds(entry):
    cfg = model_zoo.get_config(entry)
    cfg.MODEL.DEVICE = "meta"
    if cfg.MODEL.RESNETS.DEPTH > 50:
        cfg.MODEL.RESNETS.DEPTH = 50
    assert cfg.VERSION == 2
    assert model_zoo.build_model(cfg).roi_heads is not None


@pytest.mark.parametrize(
    ("entry", "key", "value"),
    [
        (MASK_R101, "MODEL.RESNETS.DEPTH", 101),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "MODEL.MASK_ON", False),
        ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "SOLVER.STEPS", (60000, 80000)),
        ("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "MODEL.ROI_HEADS.NUM_CLASSES", 1203),
        ("Cityscapes/mask_rcnn_R_50_FPN.yaml", "INPUT.MAX_SIZE_TRAIN", 2048),
        ("Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn.yaml", "MODEL.WEIGHTS", ""),
        ("new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ.py", "SOLVER.MAX_ITER", 737500),
    ],
)
def test_published_numbers(entry, key, value):
    flat = model_zoo.get_config(entry)
    for part in key.split("."):
        flat = flat[part]
    assert flat == value


def test_trained_weights_are_those_of_the_entry():
    address = "https://dl.fbaipublicfiles.com/detectron2/COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/"
    assert model_zoo.get_checkpoint_url(MASK_R101) == f"{address}138205316/model_final_a3ec72.pkl"
    assert model_zoo.get_checkpoint_url(MASK_R101) == model_zoo.get_config(MASK_R101, trained=True).MODEL.WEIGHTS
    assert model_zoo.get_config(MASK_R101).MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-101.pkl"


def test_a_python_name_means_the_same_entry():
    name = "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ"
    assert model_zoo.get_checkpoint_url(f"{name}.py") == model_zoo.get_checkpoint_url(f"{name}.yaml")
    assert model_zoo.get_config_file(f"{name}.py") == model_zoo.get_config_file(f"{name}.yaml")
    with pytest.raises(RuntimeError, match="LazyConfig"):
        model_zoo.get_config(MASK_R101.replace(".yaml", ".py"))


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml", "keypoint heads"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_101_3x.yaml", "panoptic segmentation"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "RetinaNet"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", "C4"),
        ("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml", "deformable convolutions"),
    ],
)
@pytest.mark.parametrize("function", [model_zoo.get_config_file, model_zoo.get_checkpoint_url, model_zoo.get])
def test_entries_that_need_more_say_what_is_missing(function, entry, part):
    with pytest.raises(RuntimeError, match=rf"{entry}.*no .*{part}.*install Detectron2"):
        function(entry)


def test_an_unknown_name_is_one_clear_error():
    with pytest.raises(RuntimeError, match=r"nowhere/config\.yaml is not available in the model zoo; expected"):
        model_zoo.get("nowhere/config.yaml")


def test_an_entry_without_published_weights():
    with pytest.raises(RuntimeError, match="no trained weights are published for Misc/mask_rcnn_R_50_FPN_1x_cls_agn"):
        model_zoo.get_checkpoint_url("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml")


def test_get_loads_the_weights_that_the_config_names(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(DetectionCheckpointer, "load", lambda self, path: loaded.append(path))
    entry = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    model = model_zoo.get(entry, trained=True, device="cpu")
    assert loaded == [model_zoo.get_checkpoint_url(entry)]
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
