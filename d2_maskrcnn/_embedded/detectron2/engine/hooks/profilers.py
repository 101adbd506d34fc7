"""Hooks that measure time and memory of single iterations."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from detectron2.engine.train_loop import HookBase, TrainerBase

logger = logging.getLogger(__name__)


class TorchProfiler(HookBase):
    """Profile the iterations for which ``enable_predicate(trainer)`` is true.

    >>> hook = TorchProfiler(lambda trainer: 10 < trainer.iter < 20, "output")

    Args:
        enable_predicate: called before each iteration.
        output_dir: gets ``profiler_iter<N>.json`` for chrome://tracing, or ``log/profiler_iter<N>/`` for TensorBoard.
        activities: what is recorded; None for the CPU and, if available, the GPU.
        save_tensorboard: whether TensorBoard's files are written instead of Chrome's.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Sequence[ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        available = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._enable_predicate, self._output_dir = enable_predicate, Path(output_dir)
        self._activities = available if activities is None else activities
        self._save_tensorboard = save_tensorboard
        self._profiler: profile | None = None

    def before_step(self) -> None:
        """Start the profiler if this iteration is to be profiled."""
        if not self._enable_predicate(self.trainer):
            return
        handler, iteration = None, self.trainer.iter
        if self._save_tensorboard:
            folder = self._output_dir / "log" / f"profiler_iter{iteration}"
            handler = tensorboard_trace_handler(str(folder), worker_name=f"worker{iteration}")
        self._profiler = profile(
            activities=self._activities, on_trace_ready=handler, record_shapes=True, with_stack=self._save_tensorboard
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        """Stop the profiler and write its records."""
        if self._profiler is None:
            return
        finished, self._profiler = self._profiler, None
        finished.__exit__(None, None, None)
        if not self._save_tensorboard:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(self._output_dir / f"profiler_iter{self.trainer.iter}.json"))
        table = finished.key_averages().table(sort_by="cpu_time_total", row_limit=20)
        logger.info("Iteration %d:\n%s", self.trainer.iter, table)


class AutogradProfiler(TorchProfiler):
    """Profile as :class:`TorchProfiler` does and write for chrome://tracing.

    Args:
        enable_predicate: called before each iteration.
        output_dir: gets ``profiler_iter<N>.json``.
        use_cuda: whether the GPU is recorded too, if available.
    """

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (use_cuda and torch.cuda.is_available())
        super().__init__(enable_predicate, output_dir, activities=activities, save_tensorboard=False)


class TorchMemoryStats(HookBase):
    """Log the GPU memory that PyTorch has reserved and allocated.

    Args:
        period: iterations between two lines.
        max_runs: number of lines in total.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period, self._runs_left = period, max_runs

    def after_step(self) -> None:
        """Log if it is due and there is a GPU."""
        finished = self.trainer.iter + 1
        last = finished == self.trainer.max_iter
        if not torch.cuda.is_available() or self._runs_left <= 0 or (finished % self._period and not last):
            return
        self._runs_left -= 1
        now = {"reserved": torch.cuda.memory_reserved(), "allocated": torch.cuda.memory_allocated()}
        peak = {"peak reserved": torch.cuda.max_memory_reserved(), "peak allocated": torch.cuda.max_memory_allocated()}
        sizes = ", ".join(f"{name} {size / 2**20:.0f} MB" for name, size in (now | peak).items())
        logger.info("GPU memory after iteration %d: %s", self.trainer.iter, sizes)
        torch.cuda.reset_peak_memory_stats()
