"""Check a config and everything that a training or an evaluation starts from, lock ``OUTPUT_DIR`` and start the log."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from d2_maskrcnn.config.loading import check_components
from d2_maskrcnn.config.validation import check_values
from d2_maskrcnn.data import check_datasets, register_own_data
from d2_maskrcnn.engine.console import logging_to
from d2_maskrcnn.engine.output_dir import check_output_dir, locked_output_dir
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

logger = logging.getLogger(__name__)


@contextmanager
def prepared(cfg: CfgNode, *, train: bool) -> Iterator[None]:
    """Check what a training or an evaluation starts from; inside the context ``OUTPUT_DIR`` is locked and logged to.

    Environment and config are logged to the file only, the generators are seeded with ``SEED`` plus the rank, and
    ``OUTPUT_DIR/config.yaml`` is written; an evaluation does not replace the file of a training.

    Args:
        cfg: the config; its own data is registered, and it is frozen.
        train: whether ``DATASETS.TRAIN`` is used.

    Raises:
        UserError: a config key, a file or a dataset is invalid, or another process uses ``OUTPUT_DIR``.
    """
    _check(cfg)
    with locked_output_dir(cfg.OUTPUT_DIR), logging_to(cfg.OUTPUT_DIR):
        check_datasets(cfg, train=train)
        cfg.freeze()
        logger.info("Command: %s", " ".join(sys.argv))
        logger.info("Environment:\n%s", collect_env_info())
        logger.info("Config:\n%s", cfg.dump())
        path = Path(cfg.OUTPUT_DIR) / "config.yaml"
        if comm.is_main_process() and (train or not path.is_file()):
            atomic_write_text(path, cfg.dump())
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
        torch.backends.cudnn.benchmark = train and cfg.CUDNN_BENCHMARK
        if cfg.get("FLOAT32_PRECISION") and torch.cuda.is_available():
            torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
            torch.backends.cudnn.allow_tf32 = cfg.FLOAT32_PRECISION != "highest"
        yield


def _check(cfg: CfgNode) -> None:
    """Check the values of a config, register its own data, and create ``OUTPUT_DIR``."""
    check_components(cfg)
    register_own_data(cfg)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"  # shown by show_platform
    check_values(cfg)
    check_output_dir(cfg.OUTPUT_DIR)
