"""Hooks of a training."""

from detectron2._names import lookup
from detectron2.engine.hooks.profilers import AutogradProfiler, TorchMemoryStats, TorchProfiler
from detectron2.engine.hooks.progress import CallbackHook, IterationTimer, PeriodicWriter
from detectron2.engine.hooks.results import BestCheckpointer, EvalHook, PeriodicCheckpointer
from detectron2.engine.hooks.state import LRScheduler, PreciseBN
from detectron2.engine.train_loop import HookBase

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "HookBase",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]


__getattr__ = lookup(__name__)
