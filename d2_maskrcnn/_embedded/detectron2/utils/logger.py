"""Logging: to the terminal in color, to one file per process, and rate-limited."""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import FrameType
from typing import Any

from tabulate import tabulate
from termcolor import colored

from detectron2._names import lookup
from detectron2.utils.file_io import PathManager

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_TIME_FORMAT = "%m/%d %H:%M:%S"
_COLORS = {logging.WARNING: ("red", ["blink"]), logging.ERROR: ("red", ["blink", "underline"])}
_COLORS[logging.CRITICAL] = _COLORS[logging.ERROR]


class _TerminalFormatter(logging.Formatter):
    """Abbreviate the logger's name, and color the prefix of a message if the output is a terminal."""

    def __init__(self, name: str, abbreviation: str, color: bool) -> None:
        head = "[%(asctime)s %(name)s]: "
        super().__init__((colored(head, "green") if color else head) + "%(message)s", datefmt=_TIME_FORMAT)
        self._name, self._abbreviation, self._color = name, abbreviation, color

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``."""
        full_name = record.name
        if full_name == self._name or full_name.startswith(self._name + "."):
            parts = (self._abbreviation, full_name[len(self._name) + 1 :])
            record.name = ".".join(part for part in parts if part)
        line = super().formatMessage(record)
        record.name = full_name  # a copy, since the record is passed to other handlers too
        if record.levelno < logging.WARNING:
            return line
        color, attributes = _COLORS.get(record.levelno, ("red", ["blink"]))
        prefix = colored(record.levelname, color, attrs=attributes) if self._color else record.levelname
        return f"{prefix} {line}"


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Set up a logger and all loggers below it. Further calls add neither a second terminal nor the same file.

    Args:
        output: a file (``*.txt`` or ``*.log``), or a folder for ``log.txt``; None for no file. Lines are appended.
        distributed_rank: of this process. Only rank 0 writes to the terminal; the file of rank r > 0 ends with
            ``.rank{r}``.
        color: whether the terminal is colored.
        name: of the logger.
        abbrev_name: name in the terminal; None for "d2" instead of "detectron2", else the name itself; "" for no name.
        enable_propagation: whether records are also passed to the loggers above.
        configure_stdout: whether the terminal is used at all.

    Returns:
        The logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    if abbrev_name is None:
        abbrev_name = "d2" if name == "detectron2" else name
    if configure_stdout and distributed_rank == 0:
        handler = logging.StreamHandler(stream=sys.stdout)
        handler.setFormatter(_TerminalFormatter(name, abbrev_name, color))
        _replace_handler(logger, "terminal", handler)
    if output is not None:
        _add_file(logger, _log_file(output, distributed_rank))
    return logger


def _log_file(output: str, rank: int) -> str:
    filename = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return filename if rank == 0 else f"{filename}.rank{rank}"


def _add_file(logger: logging.Logger, filename: str) -> None:
    purpose = f"file {os.path.abspath(filename) if '://' not in filename else filename}"
    if any(handler.get_name() == f"{logger.name}: {purpose}" for handler in logger.handlers):
        return
    folder = os.path.dirname(filename)
    if folder:
        PathManager.mkdirs(folder)
    handler = logging.StreamHandler(PathManager.open(filename, "a", encoding="utf-8"))
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_TIME_FORMAT))
    _replace_handler(logger, purpose, handler)


def _replace_handler(logger: logging.Logger, purpose: str, handler: logging.Handler) -> None:
    handler.setLevel(logging.DEBUG)
    handler.set_name(f"{logger.name}: {purpose}")
    for old in [old for old in logger.handlers if old.get_name() == handler.get_name()]:
        logger.removeHandler(old)
    logger.addHandler(handler)


_seen: Counter[Any] = Counter()
_last_time: dict[Any, float] = {}


def _caller() -> tuple[str, tuple[Any, ...]]:
    """Return module and line of the code that called into this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    assert frame is not None
    module = frame.f_globals.get("__name__", "detectron2")
    return ("detectron2" if module == "__main__" else module), (frame.f_code.co_filename, frame.f_lineno)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log the first ``n`` times only.

    Args:
        lvl: level of ``logging``.
        msg: the message.
        n: number of times.
        name: of the logger; None for the caller's module.
        key: what is counted: "caller" (the line of code), "message", or both.

    Raises:
        ValueError: ``key`` has another value.
    """
    parts = (key,) if isinstance(key, str) else tuple(key)
    if not parts or set(parts) - {"caller", "message"}:
        raise ValueError(f"key must be 'caller', 'message' or both, got {key!r}")
    module, place = _caller()
    identity = ("first", *(place if "caller" in parts else ()), *((msg,) if "message" in parts else ()))
    _seen[identity] += 1
    if _seen[identity] <= n:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every ``n`` calls from one line of code; arguments as in :func:`log_first_n`."""
    module, place = _caller()
    identity = ("every", *place)
    _seen[identity] += 1
    if n == 1 or _seen[identity] % n == 1:
        logging.getLogger(name or module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: float = 1, *, name: str | None = None) -> None:
    """Log unless the same line of code logged within the last ``n`` seconds; arguments as in :func:`log_first_n`."""
    module, place = _caller()
    now = time.monotonic()
    last = _last_time.get(place)
    if last is None or now - last >= n:
        logging.getLogger(name or module).log(lvl, msg)
        _last_time[place] = now


def create_small_table(small_dict: Mapping[str, Any]) -> str:
    """Return a table of one row with the keys as headers; numbers have three decimals."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict.keys()),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


__getattr__ = lookup(__name__)
