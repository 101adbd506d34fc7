"""Checkpoints, and weight files of other programs."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint import catalog  # registers catalog://
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer", "align_and_update_state_dicts", "catalog"]
