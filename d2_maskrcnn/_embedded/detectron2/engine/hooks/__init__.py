"""The usual hooks of a training."""

from detectron2.engine.hooks.checkpoints import BestCheckpointer, PeriodicCheckpointer
from detectron2.engine.hooks.evaluation import EvalHook
from detectron2.engine.hooks.precise_bn import PreciseBN
from detectron2.engine.hooks.profilers import AutogradProfiler, TorchProfiler
from detectron2.engine.hooks.progress import CallbackHook, IterationTimer, PeriodicWriter
from detectron2.engine.hooks.schedule import LRScheduler
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
    "TorchProfiler",
]
