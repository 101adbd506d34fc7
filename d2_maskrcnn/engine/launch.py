"""Starts the processes of a training: one, several on this machine, or those that ``torchrun`` has started already.

Several processes on CPUs talk through gloo and behave like several GPUs, which talk through nccl.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from d2_maskrcnn.errors import EXIT_INTERRUPTED, UserError, run_main
from detectron2.utils import comm

TIMEOUT = timedelta(minutes=30)
_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Whether ``torchrun`` started this process (all the variables that it sets are there)."""
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


def launch(
    main: Callable[..., Any],
    processes_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> None:
    """Runs ``main(*args)`` in every process of the job and returns when all have ended.

    Args:
        main: importable by name, since workers are spawned.
        processes_per_machine: GPUs to use of each machine; on a machine without a GPU, processes on its CPU.
        num_machines: machines in the job.
        machine_rank: which of them this one is, from 0.
        dist_url: ``tcp://HOST:PORT`` of machine 0; ``auto`` picks a free port when there is one machine.
        args: what ``main`` is called with.

    Raises:
        UserError: the numbers do not fit together, or there are fewer GPUs than asked for.
        SystemExit: a worker ended with a non-zero status (it has printed why).
    """
    if under_torchrun():
        _run_torchrun_worker(main, args)
        return
    _check_numbers(processes_per_machine, num_machines, machine_rank, dist_url)
    if processes_per_machine * num_machines == 1:
        main(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    workers = mp.start_processes(
        _run_spawned_worker,
        args=(main, processes_per_machine, num_machines, machine_rank, dist_url, args),
        nprocs=processes_per_machine,
        join=False,
        start_method="spawn",
    )
    _let_workers_handle_signals(workers.pids())
    try:
        while not workers.join():
            pass
    except mp.ProcessExitedException as error:
        if error.exit_code == EXIT_INTERRUPTED:  # stopped by a signal: the workers have saved and said so
            raise SystemExit(EXIT_INTERRUPTED) from error
        # join() has ended the others, which would wait for the dead one until the time-out of the process group
        reason = f"signal {error.signal_name}" if error.signal_name else f"status {error.exit_code}"
        print(
            f"Process {error.error_index} of {processes_per_machine} ended with {reason}; the others were ended, too. "
            "Start again with --resume to go on from the last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(error.exit_code if error.exit_code > 0 else 1) from error


def _let_workers_handle_signals(pids: list[int]) -> None:
    """Ctrl-C reaches the workers by itself and SIGTERM is passed on: they save and end, and this process waits for
    them.
    """

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    signal.signal(signal.SIGINT, lambda number, frame: None)
    signal.signal(signal.SIGTERM, pass_on)


def _check_numbers(processes: int, machines: int, rank: int, dist_url: str) -> None:
    if processes < 1 or machines < 1 or not 0 <= rank < machines:
        raise UserError(
            f"--num-gpus {processes} --num-machines {machines} --machine-rank {rank}: expected at least one process "
            "and one "
            "machine, and a rank from 0 to the number of machines less one."
        )
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {processes}: this machine has {torch.cuda.device_count()}; ask for at most that many."
        )
    if machines > 1 and dist_url == "auto":
        raise UserError("--num-machines above 1 needs --dist-url tcp://HOST:PORT, the same on all machines.")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _run_torchrun_worker(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    env = {name: os.environ[name] for name in _TORCHRUN_VARIABLES}
    _join(
        "env://", int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"])
    )  # torchrun sets MASTER_ADDR and MASTER_PORT for env://
    try:
        main(*args)
    finally:
        _take_down()


def _run_spawned_worker(
    local_rank: int,
    main: Callable[..., Any],
    processes: int,
    machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    def work() -> None:
        _join(dist_url, machine_rank * processes + local_rank, machines * processes, local_rank, processes)
        main(*args)
        _take_down()

    try:
        code = run_main(work)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if code:
        _leave(code)


def _take_down() -> None:
    """Ends the process groups and their threads, which go on as long as anything refers to a group.

    A thread of gloo that still holds a tensor of the last exchange when the interpreter is taken apart aborts the
    process.
    """
    dist.destroy_process_group()
    for name, value in list(vars(comm).items()):  # what Detectron2's module remembers, whichever engine it is from
        if isinstance(value, dist.ProcessGroup):
            setattr(comm, name, None)
        elif hasattr(value, "cache_clear"):
            value.cache_clear()
    gc.collect()  # wrapped models hold groups too, and are in cycles


def _leave(code: int) -> None:
    """Ends this process without taking the process group down: with a peer that is gone already, gloo would abort, and
    the launcher would see a signal in the place of this status.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(url: str, rank: int, world_size: int, local_rank: int, local_size: int) -> None:
    use_gpu = torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(local_rank)
    else:
        # Left alone, every process would start a thread for each core and they would get in each other's way.
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    dist.init_process_group(
        "nccl" if use_gpu else "gloo", init_method=url, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    comm.create_local_process_group(local_size)
    comm.synchronize()
    logging.getLogger(__name__).debug("rank %d of %d joined", rank, world_size)
