"""Write the open event storage to the terminal, to ``metrics.json`` and to TensorBoard."""

import datetime
import json
import logging
import os
import sys
import time
from abc import ABCMeta, abstractmethod
from collections import defaultdict
from functools import cached_property
from typing import Any

import torch

from detectron2.utils.event_storage import EventStorage, get_event_storage
from detectron2.utils.file_io import PathManager

# Number of latest iterations from which the remaining time is estimated.
_ETA_WINDOW = 1000


class EventWriter(metaclass=ABCMeta):
    """Base class of what writes the open :class:`EventStorage`."""

    @abstractmethod
    def write(self) -> None:
        """Write what is new since the previous call."""

    def close(self) -> None:
        """Finish; nothing is written afterwards."""
        return


class JSONWriter(EventWriter):
    """Append numbers to a file with one JSON object per iteration.

    Examples:
        ``{"data_time": 0.002, "iteration": 19, "lr": 0.0002, "total_loss": 2.71}`` is a line of it. After a training
        was resumed, an iteration can occur twice: the later line is valid.
    """

    def __init__(self, json_file: str, window_size: int = 20) -> None:
        """Open ``json_file`` for appending; noisy numbers are medians over ``window_size`` iterations."""
        _drop_torn_line(json_file)
        self._file = PathManager.open(json_file, "a")
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        """Append the iterations since the previous call."""
        lines: dict[int, dict[str, Any]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                lines[iteration][name] = value
        for iteration, values in sorted(lines.items()):
            self._file.write(json.dumps({**values, "iteration": iteration}, sort_keys=True) + "\n")
        self._last_write = max(lines, default=self._last_write)
        self._file.flush()
        if hasattr(self._file, "fileno"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _drop_torn_line(json_file: str) -> None:
    """Remove an incomplete last line of a process that was killed while writing, so that all lines can be parsed."""
    if not os.path.isfile(json_file):
        return
    with open(json_file, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


class TensorboardXWriter(EventWriter):
    """Write numbers, images and histograms as TensorBoard's event files."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any) -> None:
        """Store the folder, the window of noisy numbers in iterations, and further arguments of ``SummaryWriter``."""
        self._log_dir = log_dir
        self._window_size = window_size
        self._arguments = kwargs
        self._last_write = -1

    @cached_property
    def _writer(self) -> Any:
        # Created at the first use: TensorBoard is slow to import, and an unused file would stay empty.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._log_dir, **self._arguments)

    def write(self) -> None:
        """Write the numbers since the previous call, and images and histograms, which are removed from the storage."""
        storage = get_event_storage()
        newest = self._last_write
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                self._writer.add_scalar(name, value, iteration)
                newest = max(newest, iteration)
        self._last_write = newest
        for name, image, iteration in storage._vis_data:
            self._writer.add_image(name, image, iteration)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram_raw(**histogram)
        storage.clear_histograms()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if "_writer" in self.__dict__:
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log one line: time left, iteration, losses, times, learning rate, memory.

    Scalars with ``loss`` or ``[metric]`` in their name are printed as medians over the window, times as means.
    ``time`` is the seconds of an iteration, ``data_time`` the part of it spent waiting for data, ``max_mem`` the peak
    memory: of the GPU or, without one, of this process on the host.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20) -> None:
        """Store the number of iterations (None for no estimate of the remaining time) and the window in iterations."""
        self.logger = logging.getLogger("detectron2.utils.events")
        self._max_iter = max_iter
        self._window_size = window_size
        # (iteration, seconds) of the previous line, for an estimate if the storage has no "time".
        self._last_write: tuple[int, float] | None = None

    def write(self) -> None:
        """Log the line, unless all iterations have been logged."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # called once more by hooks after the last iteration
        eta = self._time_left(storage)
        parts = [
            f"eta: {datetime.timedelta(seconds=int(eta))}" if eta is not None else "",
            f"iter: {storage.iter}",
            *self._losses(storage),
            *self._times(storage),
            self._learning_rate(storage),
            _memory(),
        ]
        self.logger.info("  ".join(part for part in parts if part))

    def _time_left(self, storage: EventStorage) -> float | None:
        if self._max_iter is None:
            return None
        seconds = self._seconds_per_iteration(storage)
        if seconds is None:
            return None
        eta = seconds * (self._max_iter - storage.iter - 1)
        storage.put_scalar("eta_seconds", eta, smoothing_hint=False)
        return eta

    def _seconds_per_iteration(self, storage: EventStorage) -> float | None:
        if "time" in storage.histories():
            return float(storage.history("time").median(_ETA_WINDOW))
        before, self._last_write = self._last_write, (storage.iter, time.perf_counter())
        if before is None or before[0] == storage.iter:
            return None
        return (self._last_write[1] - before[1]) / (storage.iter - before[0])

    def _losses(self, storage: EventStorage) -> list[str]:
        # A validation loss is printed after its evaluation only, not in all later lines.
        recent = {
            name: value
            for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window_size).items()
            if iteration > storage.iter - self._window_size
        }
        return [f"{name}: {value:.4g}" for name, value in recent.items() if "loss" in name or "[metric]" in name]

    def _times(self, storage: EventStorage) -> list[str]:
        names = [name for name in ("time", "data_time") if name in storage.histories()]
        return [
            f"{name}: {storage.history(name).avg(storage.count_samples(name, self._window_size)):.4f}" for name in names
        ]

    def _learning_rate(self, storage: EventStorage) -> str:
        return f"lr: {storage.history('lr').latest():.5g}" if "lr" in storage.histories() else ""


def _memory() -> str:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M"
    peak = _peak_resident_bytes()
    return "" if peak is None else f"max_mem: {peak / 2**20:.0f}M"


def _peak_resident_bytes() -> int | None:
    """Return the peak memory of this process on the host; None if the system does not provide it (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
