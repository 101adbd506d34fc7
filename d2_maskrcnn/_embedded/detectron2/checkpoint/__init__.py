"""Checkpoints, and weight files of other programs."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from detectron2.checkpoint.detection_checkpoint import DetectionCheckpointer
from detectron2.checkpoint.name_matching import align_and_update_state_dicts

__all__ = ["Checkpointer", "DetectionCheckpointer", "PeriodicCheckpointer", "align_and_update_state_dicts"]
