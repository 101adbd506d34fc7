"""Train and evaluate."""

from d2_maskrcnn.checkpoint import build_checkpointer
from d2_maskrcnn.engine.launch import launch, under_torchrun
from d2_maskrcnn.engine.optimizer import build_optimizer
from d2_maskrcnn.engine.run import Training, evaluate, train
from d2_maskrcnn.engine.train_step import TrainStep
from d2_maskrcnn.engine.trainer import Trainer
from d2_maskrcnn.errors import run_main
from d2_maskrcnn.evaluation.prediction_images import draw_predictions, draw_test_sets

__all__ = [
    "TrainStep",
    "Trainer",
    "Training",
    "build_checkpointer",
    "build_optimizer",
    "draw_predictions",
    "draw_test_sets",
    "evaluate",
    "launch",
    "run_main",
    "train",
    "under_torchrun",
]
