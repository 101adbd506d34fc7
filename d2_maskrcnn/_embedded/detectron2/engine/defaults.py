"""What most training programs do alike: command line, set-up, trainer and predictor."""

from detectron2.engine.default_trainer import DefaultTrainer
from detectron2.engine.predictor import DefaultPredictor
from detectron2.engine.setup import create_ddp_model, default_argument_parser, default_setup, default_writers

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]
