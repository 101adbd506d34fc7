"""Hooks that profile iterations."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

from detectron2.engine.train_loop import HookBase, TrainerBase

logger = logging.getLogger(__name__)


class TorchProfiler(HookBase):
    """Profiles those iterations for which ``enable_predicate(trainer)`` is true.

    >>> hook = TorchProfiler(lambda trainer: 10 < trainer.iter < 20, "output")

    Args:
        enable_predicate: asked before each iteration.
        output_dir: gets ``profiler_iter<N>.json`` for chrome://tracing, or ``log/profiler_iter<N>/`` for TensorBoard.
        activities: what to record; None records the CPU and, where there is one, the GPU.
        save_tensorboard: write TensorBoard's files instead of Chrome's.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Sequence[ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        if activities is None:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._enable_predicate = enable_predicate
        self._output_dir = Path(output_dir)
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: profile | None = None

    def before_step(self) -> None:
        """Starts the profiler if this iteration is one to be profiled."""
        if not self._enable_predicate(self.trainer):
            return
        handler = None
        if self._save_tensorboard:
            folder = self._output_dir / "log" / f"profiler_iter{self.trainer.iter}"
            handler = tensorboard_trace_handler(str(folder), worker_name=f"worker{self.trainer.iter}")
        self._profiler = profile(
            activities=self._activities, on_trace_ready=handler, record_shapes=True, with_stack=self._save_tensorboard
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        """Stops the profiler and writes what it saw."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        if not self._save_tensorboard:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._output_dir / f"profiler_iter{self.trainer.iter}.json"))
        logger.info(
            "Iteration %d:\n%s",
            self.trainer.iter,
            profiler.key_averages().table(sort_by="cpu_time_total", row_limit=20),
        )


class AutogradProfiler(TorchProfiler):
    """:class:`TorchProfiler` that writes for chrome://tracing.

    Args:
        enable_predicate: asked before each iteration.
        output_dir: gets ``profiler_iter<N>.json``.
        use_cuda: record the GPU too, where there is one.
    """

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        activities = [ProfilerActivity.CPU]
        if use_cuda and torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        super().__init__(enable_predicate, output_dir, activities=activities, save_tensorboard=False)
