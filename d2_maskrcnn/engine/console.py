"""Log everything of a run to ``OUTPUT_DIR/log.txt``, and its essentials to the terminal."""

import contextlib
import datetime
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

from d2_maskrcnn._bootstrap import engine_info
from d2_maskrcnn._version import __version__
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

NAME = "d2_maskrcnn.console"  # messages of this logger are shown on the terminal as well
LOGGERS = ("d2_maskrcnn", "detectron2", "fvcore")
_SHOWN = (
    NAME,
    "d2_maskrcnn.engine.hooks.best_checkpoint",
    "d2_maskrcnn.engine.hooks.early_stopping",
    "d2_maskrcnn.engine.trainer",
)
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_TASKS = {"bbox": "boxes", "segm": "masks"}

console = logging.getLogger(NAME)


class _Terminal(logging.Handler):
    """Print messages, above a progress bar if there is one; only those of ``_SHOWN`` and warnings."""

    has_bar = False

    def __init__(self) -> None:
        super().__init__()
        self.stream = sys.stdout
        self.addFilter(lambda record: record.levelno >= logging.WARNING or record.name in _SHOWN)

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return level + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            if self.has_bar:
                tqdm.write(text, file=self.stream)
            else:
                self.stream.write(f"{text}\n")
            self.stream.flush()
        except (OSError, ValueError):  # the terminal has gone
            self.handleError(record)


@contextlib.contextmanager
def logging_to(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Log everything of both engines to ``folder/log.txt``, and the essentials of the main process to the terminal.

    Handlers that other code has added to these loggers stay. Other processes write ``log.txt.rank1``, ...; inside of
    another such context the terminal is used once.

    Args:
        folder: an existing folder.
    """
    rank = comm.get_rank()
    file = logging.FileHandler(Path(folder) / ("log.txt" if rank == 0 else f"log.txt.rank{rank}"), encoding="utf-8")
    form = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
    file.setFormatter(logging.Formatter(form, datefmt="%m/%d %H:%M:%S"))
    handlers: list[logging.Handler] = [file]
    if comm.is_main_process() and not is_active():
        handlers.append(_Terminal())
    loggers = [logging.getLogger(name) for name in LOGGERS]
    known = [each.baseFilename for each in loggers[0].handlers if isinstance(each, logging.FileHandler)]
    if file.baseFilename in known:  # inside of another context for the same folder
        file.close()
        yield
        return
    before = [(each, each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.propagate = False
        for handler in handlers:
            each.addHandler(handler)
    try:
        yield
    finally:
        for each, level, propagate in before:
            each.setLevel(level)
            each.propagate = propagate
            for handler in handlers:
                each.removeHandler(handler)
        file.close()


def is_active() -> bool:
    """Return whether this process shows the essentials on the terminal, see :func:`logging_to`."""
    return any(isinstance(handler, _Terminal) for handler in logging.getLogger(LOGGERS[0]).handlers)


@contextlib.contextmanager
def printing_to_log() -> Iterator[None]:
    """Log what is printed inside the context instead of showing it, where the terminal shows the essentials only."""
    if not is_active():
        yield
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        if printed.getvalue():
            logging.getLogger(__name__).info("Printed:\n%s", printed.getvalue().rstrip())


def show_platform() -> None:
    """Show versions, engine and hardware in one line."""
    threads = torch.get_num_threads()
    hardware = f"CPU with {threads} thread{'' if threads == 1 else 's'} (no GPU found)"
    if torch.cuda.is_available():
        hardware = torch.cuda.get_device_name()
    engine = engine_info()
    console.info(
        "d2_maskrcnn %s on the %s engine (detectron2 %s), PyTorch %s, %s, %d process%s",
        __version__, engine.name, engine.version, torch.__version__, hardware,
        comm.get_world_size(), "" if comm.get_world_size() == 1 else "es",
    )  # fmt: skip


def show_results(results: Mapping[str, Any], title: str) -> None:
    """Show COCO's metrics of an evaluation as one table.

    Args:
        results: as :meth:`~d2_maskrcnn.engine.Trainer.test` returns them.
        title: the line above the table.
    """
    rows = list(_rows(results))
    if rows:
        table = tabulate(rows, headers=["", *_METRICS], floatfmt=".1f", tablefmt="plain")
        console.info("%s\n%s", title, "\n".join(f"  {line}" for line in table.splitlines()))


def _rows(results: Mapping[str, Any], prefix: str = "") -> Iterator[list[Any]]:
    for name, value in results.items():
        if name in _TASKS:
            yield [prefix + _TASKS[name], *(value.get(metric, float("nan")) for metric in _METRICS)]
        elif isinstance(value, Mapping) and name != "validation":  # of a dataset, or of the averaged weights
            yield from _rows(value, f"{prefix}{name} ")


def duration(seconds: float) -> str:
    """Return a duration such as ``0:12:05``."""
    return str(datetime.timedelta(seconds=round(seconds)))


class ShowProgress(HookBase):
    """Show epoch, iteration, loss and time left: in a progress bar on a terminal, else in one line per report.

    Args:
        cfg: config of the training.
        images_in_epoch: number of training images.

    Register it after the learning-rate schedule and before the evaluation.
    """

    trainer: Any

    def __init__(self, cfg: CfgNode, images_in_epoch: int) -> None:
        self.period = cfg.D2_MASKRCNN.LOG_PERIOD
        self.epochs_per_iteration = cfg.SOLVER.IMS_PER_BATCH / max(images_in_epoch, 1)
        self.bar: Any = None
        self._seconds = 0.0  # of all iterations of this run, without what hooks do after them
        self._begin = 0.0

    def before_train(self) -> None:
        """Start the bar."""
        start, end = self.trainer.start_iter, self.trainer.max_iter
        if end > start and sys.stderr is not None and sys.stderr.isatty():
            _Terminal.has_bar = True
            self.bar = tqdm(total=end, initial=start, unit="iteration", dynamic_ncols=True, desc="Training")

    def before_step(self) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def after_step(self) -> None:
        """Advance the bar, or show a line if it is time."""
        trainer = self.trainer
        self._seconds += time.perf_counter() - self._begin
        done = trainer.iter + 1
        due = done % self.period == 0 or done == trainer.max_iter
        if self.bar is None and due:
            console.info("%s", self._line(done))
        elif self.bar is not None:
            self.bar.update(1)
            if due:
                self.bar.set_postfix_str(f"epoch {done * self.epochs_per_iteration:.1f}, loss {self._loss():.4g}")

    def after_train(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()
            _Terminal.has_bar = False

    def _loss(self) -> float:
        return float(self.trainer.storage.history("total_loss").median(self.period))

    def _line(self, done: int) -> str:
        trainer = self.trainer
        each = self._seconds / (done - trainer.start_iter)
        last = trainer.max_iter * self.epochs_per_iteration
        return (
            f"epoch {done * self.epochs_per_iteration:.1f}/{last:.1f}  iteration {done}/{trainer.max_iter}  "
            f"eta: {duration(each * (trainer.max_iter - done))}  total_loss: {self._loss():.4g}  "
            f"{each:.3g} s/iteration  lr: {trainer.storage.history('lr').latest():.4g}"
        )
