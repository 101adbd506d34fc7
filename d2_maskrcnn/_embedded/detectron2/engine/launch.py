"""Run a function in every process of a distributed training."""

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

__all__ = ["DEFAULT_TIMEOUT", "launch"]

DEFAULT_TIMEOUT = timedelta(minutes=30)

logger = logging.getLogger(__name__)


class _Job(NamedTuple):
    """What every process of a job needs to know."""

    main_func: Callable[..., Any]
    args: tuple[Any, ...]
    num_machines: int
    machine_rank: int
    processes_per_machine: int
    address: str
    timeout: timedelta


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call ``main_func(*args)`` in ``num_machines * num_gpus_per_machine`` processes and wait for their end.

    A single process is the current one. Several are spawned on each machine: process i uses GPU i and NCCL, or gloo if
    there is no GPU.

    Args:
        main_func: a function that can be pickled, that is, imported by name.
        num_gpus_per_machine: processes on each machine; 0 and 1 mean one.
        num_machines: machines in the job.
        machine_rank: index of this machine, from 0.
        dist_url: address at which the processes meet, ``tcp://HOST:PORT``; ``"auto"`` takes a free port of this
            machine, if it is the only one.
        args: arguments of ``main_func``.
        timeout: of collective operations.

    Raises:
        ValueError: ``dist_url`` is missing, or is ``"auto"`` for several machines.
        RuntimeError: the machine has fewer GPUs.
    """
    processes = max(num_gpus_per_machine, 1)
    if num_machines * processes == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise RuntimeError(
            f"num_gpus_per_machine is {processes}, but this machine has {torch.cuda.device_count()} GPUs"
        )
    address = _meeting_point(dist_url, num_machines)
    job = _Job(main_func, args, num_machines, machine_rank, processes, address, timeout)
    # Daemonic processes must not have children, which data loaders need.
    mp.start_processes(_run_process, args=(job,), nprocs=processes, daemon=False, start_method="spawn")


def _meeting_point(dist_url: str | None, num_machines: int) -> str:
    if dist_url is None:
        raise ValueError("dist_url is None: several processes need an address at which they meet, or 'auto'")
    if dist_url != "auto":
        if num_machines > 1 and dist_url.startswith("file://"):
            logger.warning("dist_url %s: file:// is unreliable between machines; prefer tcp://", dist_url)
        return dist_url
    if num_machines > 1:
        raise ValueError(f"dist_url is 'auto', which works on one machine, not on {num_machines}: pass tcp://HOST:PORT")
    return f"tcp://127.0.0.1:{_find_free_port()}"


def _find_free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # port 0: the system chooses a free one
        return server.getsockname()[1]


def _run_process(local_rank: int, job: _Job) -> None:
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        init_method=job.address,
        world_size=job.num_machines * job.processes_per_machine,
        rank=job.machine_rank * job.processes_per_machine + local_rank,
        timeout=job.timeout,
    )
    try:
        comm.create_local_process_group(job.processes_per_machine)
        comm.synchronize()
        job.main_func(*job.args)
    finally:
        comm.destroy_process_groups()
