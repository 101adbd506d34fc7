"""Turn command-line arguments into a checked, frozen config, register its datasets and set up logging."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn.config.loading import check_components, load_config
from d2_maskrcnn.config.validation import check_values
from d2_maskrcnn.data import check_datasets, register_own_data
from d2_maskrcnn.engine.output_dir import check_output_dir, lock_output_dir
from d2_maskrcnn.weights.atomic import atomic_write_text
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Read and check everything that a training or an evaluation starts from, and lock ``OUTPUT_DIR``.

    Args:
        args: ``config_file``, ``opts`` and ``eval_only``, from Detectron2's ``default_argument_parser``.

    Returns:
        The frozen config, which is also written to ``OUTPUT_DIR/config.yaml``; an evaluation does not replace the file
        of a training.

    Raises:
        UserError: a config key, a file or a dataset is invalid, or another process uses ``OUTPUT_DIR``.
    """
    cfg = load_config(args.config_file, args.opts)
    check_components(cfg)
    register_own_data(cfg)
    moved_to_cpu = _use_cpu_without_gpu(cfg)
    check_values(cfg)
    check_output_dir(cfg.OUTPUT_DIR)
    lock_output_dir(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2_maskrcnn", abbrev_name="d2m")
    check_datasets(cfg, train=not args.eval_only)
    cfg.freeze()
    with _kept_file(Path(cfg.OUTPUT_DIR) / "config.yaml") if args.eval_only else nullcontext():
        default_setup(cfg, args)
    logger.info("Engine: %s", engine_info())
    if moved_to_cpu:
        logger.warning("MODEL.DEVICE is cuda, but this machine has no CUDA device: using the CPU, which is slow.")
    return cfg


def _use_cpu_without_gpu(cfg: CfgNode) -> bool:
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        return True
    return False


@contextlib.contextmanager
def _kept_file(path: Path) -> Iterator[None]:
    """Restore the content of ``path``, if it exists, after the ``with`` block."""
    content = path.read_text() if path.is_file() else None
    try:
        yield
    finally:
        if content is not None and comm.is_main_process():
            atomic_write_text(path, content)
