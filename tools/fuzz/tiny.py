"""A dataset of tiny images and the config of a training on it that takes a second."""

import importlib.util
from pathlib import Path
from typing import Any

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from detectron2.config import CfgNode

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")


def draw(folder: Path) -> None:
    """Write the dataset to ``folder/shapes``."""
    spec = importlib.util.spec_from_file_location("prepare_shapes", ROOT / "datasets" / "prepare_shapes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw_dataset(folder / "shapes", train=4, val=2, size=64, seed=3)


def options(shared: Path, output: Path, **more: Any) -> list[str]:
    """Return ``KEY VALUE`` pairs; ``more`` replaces some, with ``__`` in place of the dots."""
    data = shared / "shapes"
    pairs = {
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "DATALOADER.NUM_WORKERS": 0,
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


def config(shared: Path, output: Path, *opts: str, **more: Any) -> CfgNode:
    """Return the frozen config with its datasets registered."""
    cfg = load_config(CONFIG, [*options(shared, output, **more), *opts])
    register_own_data(cfg)
    cfg.freeze()
    return cfg
