"""Run inputs in worker processes with limits of memory and time, and classify what happens.

An area (``tools.fuzz.coco``, ...) is a module with ``COUNT``, the usual number of inputs; ``prepare(folder)``, which
writes what its inputs share; and ``make(rng, shared, folder)``, which returns an :class:`Input`.
"""

import contextlib
import importlib
import io
import logging
import multiprocessing
import os
import random
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

AREAS = ("coco", "checkpoints", "configs", "images", "videos", "command_line", "resume")
OUTCOMES = ("accepted", "refused", "traceback", "hang", "over 2 GB", "silently wrong")
CLEAN = OUTCOMES[:2]
MEMORY = 2 << 30  # bytes above what the imports need
TIME = 60.0  # seconds for one input, also on a busy machine
START = 300.0  # seconds for a worker's imports
MAX_MESSAGE = 2000  # characters


class SilentlyWrong(AssertionError):
    """Raised by an input's check if the program accepted it and made something wrong of it."""


@dataclass
class Input:
    """One malformed (or, now and then, intact) input.

    Attributes:
        label: what was done to it, for the report.
        run: gives it to the program. Returns if it was accepted and the result is right; raises
            :class:`SilentlyWrong` if the result is not, or whatever the program raises.
    """

    label: str
    run: Callable[[], object]


@dataclass
class Result:
    """What happened to one input."""

    area: str
    index: int
    label: str = ""
    outcome: str = ""
    detail: str = ""

    @property
    def is_clean(self) -> bool:
        """Whether the input was refused as it should be, or accepted with the right result."""
        return self.outcome in CLEAN


@dataclass
class Job:
    """A worker process and the input that it runs."""

    process: Any
    connection: Connection
    result: Result | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + START)


def expect(condition: object, message: str) -> None:
    """Raise :class:`SilentlyWrong` with ``message`` unless ``condition``."""
    if not condition:
        raise SilentlyWrong(message)


def run_input(area: str, seed: int, index: int, shared: Path, report: Callable[[str], None]) -> Result:
    """Make one input from its number and run it in this process.

    Args:
        area: one of ``AREAS``.
        seed, index: determine the input.
        shared: the folder that the area's ``prepare`` has filled.
        report: called with the input's label before it is run.
    """
    module = importlib.import_module(f"tools.fuzz.{area}")
    result = Result(area, index)
    with tempfile.TemporaryDirectory(prefix="d2_fuzz_") as folder:
        made = module.make(random.Random(f"{seed}/{area}/{index}"), shared, Path(folder))
        result.label = made.label
        report(made.label)
        with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
            result.outcome, result.detail = _classify(made.run, stderr)
    return result


def _classify(run: Callable[[], object], stderr: io.StringIO) -> tuple[str, str]:
    from d2_maskrcnn.errors import UserError, one_line

    try:
        run()
    except SilentlyWrong as error:
        return "silently wrong", str(error)
    except UserError as error:
        text = one_line(error)  # as the programs print it
        return ("refused", text) if 0 < len(text) <= MAX_MESSAGE else ("traceback", f"a long message: {text[:400]}")
    except SystemExit as stop:
        lines = stderr.getvalue().strip().splitlines()
        if stop.code in (0, None):
            return "accepted", ""
        said = stop.code == 2 and lines and "error:" in lines[-1]
        return ("refused", lines[-1]) if said else ("traceback", f"SystemExit {stop.code}: {lines[-1:]}")
    except MemoryError:
        return "over 2 GB", traceback.format_exc(limit=-4)
    except Exception as error:
        kind = "over 2 GB" if "allocate memory" in str(error) or "alloc" in type(error).__name__ else "traceback"
        return kind, traceback.format_exc(limit=-6)
    return "accepted", ""


def work(connection: Connection, area: str, seed: int, shared: Path) -> None:
    """Run inputs by number as they arrive through ``connection``, until it is closed."""
    import torch

    torch.set_num_threads(1)
    importlib.import_module(f"tools.fuzz.{area}")
    logging.disable(logging.CRITICAL)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY,) * 2)
    connection.send("ready")
    while True:
        try:
            index = connection.recv()
        except EOFError:
            return
        connection.send(run_input(area, seed, index, shared, lambda label: connection.send(label)))


def run_area(area: str, seed: int, indices: list[int], jobs: int, shared: Path) -> list[Result]:
    """Run inputs of one area in ``jobs`` workers; a worker that hangs or dies is replaced."""
    todo, results = list(reversed(indices)), []
    workers = [_start(area, seed, shared) for _ in range(min(jobs, len(indices)))]
    while workers:
        wait([job.connection for job in workers], timeout=0.5)
        for number, job in enumerate(workers):
            finished = _advance(job, todo)
            if finished is None:
                continue
            results.append(finished)
            if not finished.is_clean and finished.outcome in ("hang", "over 2 GB") and not job.process.is_alive():
                workers[number] = _start(area, seed, shared)
        for job in [job for job in workers if job.result is None and not todo and job.deadline == 0]:
            job.connection.close()
            job.process.join()
            workers.remove(job)
    return sorted(results, key=lambda result: result.index)


def _start(area: str, seed: int, shared: Path) -> Job:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, area, seed, shared), daemon=True)
    process.start()
    theirs.close()
    return Job(process, ours)


def _advance(job: Job, todo: list[int]) -> Result | None:
    """Handle what a worker has sent, and give it the next input; return the result of an input that ended."""
    try:
        message = job.connection.recv() if job.connection.poll() else None
    except (EOFError, ConnectionResetError):
        job.process.join()
        return _lost(job, "over 2 GB", f"the process died with status {job.process.exitcode}")
    if message is None and time.monotonic() > job.deadline > 0:
        job.process.kill()
        job.process.join()
        return _lost(job, "hang", f"more than {TIME:.0f} s")
    if isinstance(message, str) and job.result is not None:
        job.result.label = message
    elif message is not None:
        done = message if isinstance(message, Result) else None
        _give(job, todo)
        return done
    return None


def _give(job: Job, todo: list[int]) -> None:
    if not todo:
        job.result, job.deadline = None, 0
        return
    index = todo.pop()
    job.result, job.deadline = Result(job.process.name, index), time.monotonic() + TIME
    job.connection.send(index)


def _lost(job: Job, outcome: str, detail: str) -> Result:
    if job.result is None:
        raise RuntimeError(f"a worker could not start: {detail}")
    return Result(job.result.area, job.result.index, job.result.label, outcome, detail)
