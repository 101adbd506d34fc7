"""Command line, logging, seeds, writers and the distributed wrapper of a training program."""

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
    """The parser of the usual training program; ``args.opts`` gets the trailing ``KEY VALUE`` pairs."""
    parser = argparse.ArgumentParser(
        epilog=epilog or _EPILOG.format(program=Path(sys.argv[0]).name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML file with the config")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS (or the last checkpoint)")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs to use on each machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in this job")
    parser.add_argument("--machine-rank", type=int, default=0, help="which of the machines this is, from 0")
    parser.add_argument(
        "--dist-url", default=f"tcp://127.0.0.1:{_port_of_user()}", help="where the processes meet, or 'auto'"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs that change the config")
    return parser


def _port_of_user() -> int:
    """A port from 49152 to 65535: another one for each user of a machine, the same in all processes of a user."""
    user = str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    return 2**15 + 2**14 + int(hashlib.sha1(user.encode()).hexdigest(), 16) % 2**14


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepares a training process.

    Makes the output folder, sets up the loggers (a file of its own for each process), logs the environment, the
    arguments and the config, writes the config to ``OUTPUT_DIR/config.yaml``, seeds the random numbers (``SEED`` plus
    the rank), and sets cuDNN's benchmark mode and the precision of float32 products.

    Args:
        cfg: the final config.
        args: from :func:`default_argument_parser`; only ``config_file`` and ``eval_only`` are looked at, where they
            exist.
    """
    is_main = comm.is_main_process()
    output_dir = cfg.OUTPUT_DIR
    if is_main and output_dir:
        PathManager.mkdirs(output_dir)
    comm.synchronize()  # the other processes log into the folder too
    rank = comm.get_rank()
    setup_logger(output_dir or None, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir or None, distributed_rank=rank)

    logger.info("Rank of this process: %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file, "r") as file:
            logger.info("Config file %s:\n%s", config_file, file.read())
    if is_main:
        logger.info("Whole config:\n%s", cfg.dump())
        if output_dir:
            path = os.path.join(output_dir, "config.yaml")
            with PathManager.open(path, "w") as file:
                file.write(cfg.dump())
            logger.info("The whole config is saved in %s", path)

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        # Finding the fastest algorithms takes time for each image size: not worth it for one pass over the images.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        _set_float32_precision(cfg.FLOAT32_PRECISION)


def _set_float32_precision(precision: str) -> None:
    """What GPUs may do to float32 products and convolutions: nothing ("highest"), or round them ("high", "medium")."""
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"FLOAT32_PRECISION {precision!r}: expected highest, high, medium, or nothing")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers for the terminal, ``metrics.json`` and TensorBoard, the latter two into ``output_dir``."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """``model`` itself where there is one process, else wrapped so that gradients are averaged over the processes.

    Args:
        model: on this process's device.
        fp16_compression: exchange gradients in float16.
        **kwargs: for :class:`torch.nn.parallel.DistributedDataParallel`.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if "device_ids" not in kwargs and device.type != "cpu":  # on CPUs there must be none
        kwargs["device_ids"] = [device.index if device.index is not None else comm.get_local_rank()]
    wrapped = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        wrapped.register_comm_hook(state=None, hook=default_hooks.fp16_compress_hook)
    return wrapped
