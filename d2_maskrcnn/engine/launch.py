"""Start the processes of a training: one, several on this machine, or those that ``torchrun`` has started.

Processes on GPUs communicate through nccl, processes on CPUs through gloo.
"""

import contextlib
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

from d2_maskrcnn import compat
from d2_maskrcnn.engine.signals import stop_signals
from d2_maskrcnn.errors import EXIT_INTERRUPTED, UserError, run_main
from detectron2.utils import comm

MIN_CPU_PROCESSES = 8  # allowed on any machine, to try what several GPUs will do
TIMEOUT = timedelta(minutes=30)
_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Return whether ``torchrun`` started this process, i.e. whether all the variables that it sets are there."""
    return all(name in os.environ for name in _TORCHRUN_VARIABLES)


def launcher_pid() -> int:
    """Return the id of the process that started the processes of this job, or of this process if it is the only one.

    Stopping that process stops the job.
    """
    if comm.get_world_size() == 1:
        return os.getpid()
    parent = mp.parent_process()
    return parent.pid if parent is not None and parent.pid is not None else os.getppid()  # getppid: torchrun's agent


def launch(
    main: Callable[..., Any],
    processes_per_machine: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> None:
    """Run ``main(*args)`` in every process of the job and return when all have ended.

    Args:
        main: importable by name, because workers are spawned.
        processes_per_machine: number of GPUs to use on each machine, or of CPU processes on a machine without a GPU.
        num_machines: number of machines in the job.
        machine_rank: index of this machine, from 0.
        dist_url: ``tcp://HOST:PORT`` of machine 0; ``auto`` picks a free port if there is one machine.
        args: arguments of ``main``.

    Raises:
        UserError: see :func:`check_processes`.
        SystemExit: a worker ended with a non-zero status; it has printed the reason.
    """
    if under_torchrun():
        _run_torchrun_worker(main, args)
        return
    check_processes(processes_per_machine, num_machines, machine_rank, dist_url)
    if processes_per_machine * num_machines == 1:
        main(*args)
        return
    if dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    _spawn(processes_per_machine, (main, processes_per_machine, num_machines, machine_rank, dist_url, args))


def _spawn(count: int, args: tuple[Any, ...]) -> None:
    """Run :func:`_run_spawned_worker` in ``count`` processes; see :func:`launch`."""
    workers = mp.start_processes(_run_spawned_worker, args=args, nprocs=count, join=False, start_method="spawn")
    _let_workers_handle_signals(workers.pids())
    try:
        while not workers.join():
            pass
    except mp.ProcessExitedException as error:
        # join() has ended the others, which would wait for the dead one until the process group's timeout.
        print(_describe_exit(error, count), file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code if error.exit_code > 0 else 1) from error


def _describe_exit(error: mp.ProcessExitedException, processes: int) -> str:
    if error.exit_code == EXIT_INTERRUPTED:  # stopped on request: the workers have saved and logged it
        return "interrupted"
    reason = f"signal {error.signal_name}" if error.signal_name else f"status {error.exit_code}"
    return (
        f"Process {error.error_index} of {processes} ended with {reason}; the others were terminated. "
        "Resume to continue from the last checkpoint."
    )


def _let_workers_handle_signals(pids: list[int]) -> None:
    """Leave stopping to the workers, which save and exit. Ctrl-C reaches them directly, other signals are passed on."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    for number in stop_signals():
        signal.signal(number, (lambda number, frame: None) if number == signal.SIGINT else pass_on)


def check_processes(processes_per_machine: int, num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Check the arguments of :func:`launch`.

    Raises:
        UserError: they do not fit together, or this machine has fewer GPUs than ``processes_per_machine``.
    """
    if processes_per_machine < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise UserError(
            f"processes_per_machine {processes_per_machine}, num_machines {num_machines}, machine_rank {machine_rank}: "
            "expected at least one process and one machine, and a rank from 0 to num_machines - 1."
        )
    if torch.cuda.is_available() and processes_per_machine > torch.cuda.device_count():
        raise UserError(
            f"processes_per_machine {processes_per_machine}: this machine has {torch.cuda.device_count()} GPUs."
        )
    most = max(MIN_CPU_PROCESSES, os.cpu_count() or 1)
    if not torch.cuda.is_available() and processes_per_machine > most:
        raise UserError(f"processes_per_machine {processes_per_machine}: at most {most} run on this machine's CPUs.")
    if num_machines > 1 and dist_url == "auto":
        raise UserError(f"num_machines {num_machines}: dist_url must be tcp://HOST:PORT, the same on all machines.")


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
        compat.destroy_process_groups()


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
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # train_net.py replaces it during the imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            _join(dist_url, machine_rank * processes + local_rank, machines * processes, local_rank, processes)
            main(*args)
        except KeyboardInterrupt as error:  # the launcher prints it once for all workers
            raise SystemExit(EXIT_INTERRUPTED) from error
        compat.destroy_process_groups()

    try:
        code = run_main(work)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if code:
        _exit_now(code)


def _exit_now(code: int) -> None:
    """End this process without destroying its process group.

    If a peer is gone already, gloo would abort, and the launcher would see a signal instead of this status.
    """
    logging.shutdown()
    with contextlib.suppress(OSError):  # the terminal has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _join(url: str, rank: int, world_size: int, local_rank: int, local_size: int) -> None:
    use_gpu = torch.cuda.is_available()
    if use_gpu:
        torch.cuda.set_device(local_rank)
    else:
        # By default every process would start one thread per core.
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    dist.init_process_group(
        "nccl" if use_gpu else "gloo", init_method=url, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    comm.create_local_process_group(local_size)
    comm.synchronize()
    logging.getLogger(__name__).debug("rank %d of %d joined", rank, world_size)
