"""Runs a function in every process of a distributed training."""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Calls ``main_func(*args)`` in ``num_machines * num_gpus_per_machine`` processes and waits for their end.

    One process is this process. More are spawned; with GPUs they talk through nccl and process i of a machine gets its
    GPU i, without GPUs they talk through gloo.

    Args:
        main_func: a function that can be imported by name.
        num_gpus_per_machine: processes on each machine; 0 and 1 mean one.
        num_machines: machines in the job.
        machine_rank: which of them this is, from 0.
        dist_url: where the processes meet, ``tcp://HOST:PORT``; ``"auto"`` takes a free port of a single machine.
        args: arguments of ``main_func``.
        timeout: of collective operations.

    Raises:
        ValueError: ``dist_url`` is missing, or is ``"auto"`` for several machines.
        RuntimeError: more GPUs are asked for than there are.
    """
    local_size = max(num_gpus_per_machine, 1)
    if num_machines * local_size == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and local_size > torch.cuda.device_count():
        raise RuntimeError(f"{local_size} GPUs were asked for, but there are {torch.cuda.device_count()}")
    mp.start_processes(
        _distributed_worker,
        args=(main_func, num_machines, local_size, machine_rank, _meeting_point(dist_url, num_machines), args, timeout),
        nprocs=local_size,
        daemon=False,  # daemons may not have children, and data loaders need some
        start_method="spawn",
    )


def _meeting_point(dist_url: str | None, num_machines: int) -> str:
    if dist_url is None:
        raise ValueError("dist_url is missing: several processes need an address to meet, or 'auto'")
    if dist_url != "auto":
        if num_machines > 1 and dist_url.startswith("file://"):
            logger.warning("%s: file:// is unreliable between machines; tcp:// is the better choice", dist_url)
        return dist_url
    if num_machines > 1:
        raise ValueError(f"dist_url 'auto' serves one machine, not {num_machines}: give tcp://HOST:PORT")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # port 0: the system chooses a free one
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def _distributed_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    num_machines: int,
    local_size: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
    timeout: timedelta,
) -> None:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        init_method=dist_url,
        world_size=num_machines * local_size,
        rank=machine_rank * local_size + local_rank,
        timeout=timeout,
    )
    try:
        comm.create_local_process_group(local_size)
        comm.synchronize()
        main_func(*args)
    finally:
        comm.destroy_process_groups()
