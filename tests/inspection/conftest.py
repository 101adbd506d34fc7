"""A small model with fixed random weights, which has detections, and an annotated image."""

from pathlib import Path

import pytest
import torch

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.inspection import observe
from d2_maskrcnn.inspection.records import available_records, class_names_of
from d2_maskrcnn.model_loading import load_model
from tools.fuzz.tiny import NARROW_MODEL


@pytest.fixture(scope="session")
def config_file() -> str:
    return str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")


@pytest.fixture(scope="session")
def small_opts(tiny_shapes) -> list[str]:
    """``KEY VALUE`` pairs of a narrow model for 64x64 images whose weights are random."""
    pairs = {
        **NARROW_MODEL,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL": False,
        "D2_MASKRCNN.DATA.TRAIN_JSON": tiny_shapes / "annotations" / "instances_train.json",
        "D2_MASKRCNN.DATA.TRAIN_IMAGES": tiny_shapes / "train",
        "D2_MASKRCNN.DATA.VAL_JSON": tiny_shapes / "annotations" / "instances_val.json",
        "D2_MASKRCNN.DATA.VAL_IMAGES": tiny_shapes / "val",
    }
    return [str(item) for pair in pairs.items() for item in pair]


@pytest.fixture(scope="session")
def cfg(config_file, small_opts):
    config = load_config(config_file, small_opts)
    register_own_data(config)
    return config


@pytest.fixture(scope="session")
def model(cfg):
    torch.manual_seed(5)
    return load_model(cfg, require_weights=False)[0]


@pytest.fixture(scope="session")
def record(cfg):
    """The validation image with the most objects, crowd regions not counted."""
    records = available_records(cfg.DATASETS.TEST[0])
    return max(records, key=lambda r: sum(not a.get("iscrowd", 0) for a in r["annotations"]))


@pytest.fixture(scope="session")
def observation(cfg, model, record):
    return observe(cfg, model, record, class_names_of(cfg))


@pytest.fixture(scope="session")
def blind_observation(cfg, model, record):
    """The same image without ground truth."""
    return observe(cfg, model, {k: v for k, v in record.items() if k != "annotations"}, class_names_of(cfg))
