"""Command line, process setup, event writers and data-parallel wrapping of a training program."""

import argparse
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

_EPILOG = """examples:
  on one machine:
    {program} --config-file config.yaml --num-gpus 8
  with other settings:
    {program} --config-file config.yaml SOLVER.BASE_LR 0.001 OUTPUT_DIR runs/1
  on two machines:
    {program} --config-file config.yaml --num-machines 2 --machine-rank 0 --dist-url tcp://HOST:PORT
    {program} --config-file config.yaml --num-machines 2 --machine-rank 1 --dist-url tcp://HOST:PORT
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """Return the command-line parser of the usual training program.

    The trailing ``KEY VALUE`` pairs, which override the config, become ``args.opts``.
    """
    parser = argparse.ArgumentParser(
        epilog=epilog or _EPILOG.format(program=Path(sys.argv[0]).name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="config in YAML")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS or the last checkpoint")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs per machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in this job")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine, from 0")
    url = f"tcp://127.0.0.1:{_port_of_user()}"
    parser.add_argument("--dist-url", default=url, help="address at which the processes meet, or 'auto'")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs that override the config")
    return parser


def _port_of_user() -> int:
    """Return a port from 49152 to 65535 that differs between the users of a machine, but not between processes."""
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return 49152 + int(hashlib.sha1(user.encode()).hexdigest(), 16) % 16384


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepare a process of a training.

    Create the output folder, set up the loggers (one log file per process), log environment, arguments and config,
    write ``OUTPUT_DIR/config.yaml``, seed the random generators with ``SEED`` plus the rank, and set cuDNN's benchmark
    mode and the float32 precision.

    Args:
        cfg: the final config.
        args: from :func:`default_argument_parser`; only ``config_file`` and ``eval_only`` are read, if present.

    Raises:
        ValueError: ``FLOAT32_PRECISION`` is unknown.
    """
    rank, folder = comm.get_rank(), cfg.OUTPUT_DIR
    if comm.is_main_process() and folder:
        PathManager.mkdirs(folder)
    comm.synchronize()  # the other processes log into the folder too
    setup_logger(folder or None, distributed_rank=rank, name="fvcore")
    logger = setup_logger(folder or None, distributed_rank=rank)

    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    if config_file := getattr(args, "config_file", ""):
        with PathManager.open(config_file, "r") as file:
            logger.info("Contents of %s:\n%s", config_file, file.read())
    if comm.is_main_process():
        logger.info("Running with full config:\n%s", cfg.dump())
        if folder:
            path = os.path.join(folder, "config.yaml")
            with PathManager.open(path, "w") as file:
                file.write(cfg.dump())
            logger.info("Full config saved to %s", path)

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        # cuDNN's search for the fastest algorithm takes time per image size: not worth it for one pass over a dataset.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        _set_float32_precision(cfg.FLOAT32_PRECISION)


def _set_float32_precision(precision: str) -> None:
    """Allow GPUs to round the operands of float32 products ("high", "medium") or not ("highest")."""
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"FLOAT32_PRECISION is {precision!r}: expected 'highest', 'high', 'medium' or ''")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Return writers to the terminal, to ``output_dir/metrics.json``, and to TensorBoard files in ``output_dir``."""
    PathManager.mkdirs(output_dir)
    metrics = os.path.join(output_dir, "metrics.json")
    return [CommonMetricPrinter(max_iter), JSONWriter(metrics), TensorboardXWriter(output_dir)]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap a model so that gradients are averaged over processes; in a single process, return it unchanged.

    Args:
        model: on the device of this process.
        fp16_compression: whether gradients are exchanged in float16.
        **kwargs: passed to :class:`torch.nn.parallel.DistributedDataParallel`.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type != "cpu":  # on CPUs, device_ids must be None
        kwargs.setdefault("device_ids", [comm.get_local_rank() if device.index is None else device.index])
    wrapped = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return wrapped
