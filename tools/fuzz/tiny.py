"""A dataset of tiny images and the config of a training on it that takes a second."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")
NARROW_MODEL = {
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}


def draw(folder: Path, train: int = 4, val: int = 2) -> None:
    """Write a dataset of 64x64 pixel images to ``folder/shapes``."""
    spec = importlib.util.spec_from_file_location("prepare_shapes", ROOT / "datasets" / "prepare_shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw_dataset(folder / "shapes", train=train, val=val, size=64, seed=3)


def options(shared: Path, output: Path, **more: Any) -> list[str]:
    """Return ``KEY VALUE`` pairs; ``more`` replaces some, with ``__`` in place of the dots."""
    data = shared / "shapes"
    pairs = {
        **NARROW_MODEL,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.WARMUP_ITERS": 1,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "SEED": 7,
        "D2_MASKRCNN.INSPECT.ENABLED": False,
        "D2_MASKRCNN.DATA.TRAIN_JSON": data / "annotations" / "instances_train.json",
        "D2_MASKRCNN.DATA.TRAIN_IMAGES": data / "train",
        "D2_MASKRCNN.DATA.VAL_JSON": data / "annotations" / "instances_val.json",
        "D2_MASKRCNN.DATA.VAL_IMAGES": data / "val",
        "OUTPUT_DIR": output,
    }
    pairs.update({key.replace("__", "."): value for key, value in more.items()})
    return [str(item) for pair in pairs.items() for item in pair]


def config(opts: Sequence[str]) -> CfgNode:
    """Return the frozen config of ``KEY VALUE`` pairs over the quick start's, with its datasets registered."""
    cfg = load_config(CONFIG, opts)
    register_own_data(cfg)
    cfg.freeze()
    return cfg
