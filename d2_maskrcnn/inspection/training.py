"""TensorBoard output at the end of every epoch of a training: histograms of weights and gradients, and images."""

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.data.coco.records import Record
from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.errors import warn_on_failure
from d2_maskrcnn.inspection.anchors import label_scene, proposal_scene
from d2_maskrcnn.inspection.boxes import refinement_scene
from d2_maskrcnn.inspection.masks import inspect_masks, strip
from d2_maskrcnn.inspection.observation import observe
from d2_maskrcnn.inspection.records import available_records, class_names_of
from d2_maskrcnn.inspection.result import result_scene
from d2_maskrcnn.inspection.weights import group_of
from d2_maskrcnn.visualization.scene import Scene, raster
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)

BINS = 64
MAX_VALUES = 1 << 18  # of each group of parameters, of which a histogram is made
MASKS_SHOWN = 6
MIN_SIDE = 512  # smaller images are enlarged to this, so that labels are readable


def inspection_hooks(cfg: CfgNode) -> list[HookBase]:
    """Build the hooks of ``D2_MASKRCNN.INSPECT`` for ``Trainer(cfg, report_hooks=...)``; none if it is off."""
    return [InspectTraining(cfg)] if cfg.D2_MASKRCNN.INSPECT.ENABLED else []


class InspectTraining(HookBase):
    """Put histograms and images into the event storage at the end of every epoch; see ``D2_MASKRCNN.INSPECT``.

    Histograms are made at the end of every epoch. Images are skipped while the time spent on them, including the
    last ones, exceeds ``MAX_SHARE`` of the training's time. Neither draws random numbers or changes the model, so
    the trained weights do not depend on this hook. Gradients are those of the epoch's last iteration, after clipping.

    Register it in the main process only, before the hook that runs the event writers.

    Args:
        cfg: config of the training, with registered datasets.
        images_in_epoch: number of images of an epoch; None for the size of the trainer's training set.
    """

    def __init__(self, cfg: CfgNode, images_in_epoch: int | None = None) -> None:
        self.cfg = cfg
        self.node = cfg.D2_MASKRCNN.INSPECT
        self.images_in_epoch = images_in_epoch
        self.spent = 0.0  # seconds
        self.reports = 0  # epochs with images
        self._last_cost = 0.0
        self._start = 0.0
        self._records: list[Record] | None = None

    trainer: Any

    def before_train(self) -> None:
        """Start the clock."""
        if self.images_in_epoch is None:
            self.images_in_epoch = max(len(self.trainer.train_loader.records), 1)
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Write histograms, and images if there is time, if an epoch has ended."""
        if not self._epoch_ended(self.trainer.iter):
            return
        model, storage = unwrap(self.trainer.model), self.trainer.storage
        begin = time.perf_counter()
        if self.node.HISTOGRAMS:
            with warn_on_failure("making histograms of the weights"):
                put_histograms(model, storage)
        elapsed = time.perf_counter() - self._start
        if self.node.IMAGES and self.spent + self._last_cost <= self.node.MAX_SHARE * elapsed:
            images_begin = time.perf_counter()
            with warn_on_failure("drawing images of the training"):
                self.put_images(model, storage)
            self._last_cost = time.perf_counter() - images_begin
            self.reports += 1
        self.spent += time.perf_counter() - begin

    def after_train(self) -> None:
        """Log the time that was spent."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        share = 100 * self.spent / elapsed
        logger.info(
            "Inspection took %.1f s, %.1f%% of the time; %d epochs have images", self.spent, share, self.reports
        )

    def _epoch_ended(self, iteration: int) -> bool:
        batch, size = self.cfg.SOLVER.IMS_PER_BATCH, self.images_in_epoch or 1
        return (iteration + 1) * batch // size > iteration * batch // size

    def put_images(self, model: nn.Module, storage: EventStorage) -> None:
        """Put drawings of the intermediate results of a few images into ``storage``."""
        for index, record in enumerate(self._chosen_records()):
            for name, image in self._images(model, record).items():
                storage.put_image(f"inspection_{index}/{name}", image.transpose(2, 0, 1))  # (3, H, W)

    def _chosen_records(self) -> list[Record]:
        """Return the first images with objects of the first dataset that is on this machine, test sets first."""
        if self._records is None:
            names = (*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN)
            records = next((records for records in map(available_records, names) if records), [])
            with_objects = [record for record in records if record.get("annotations")]
            self._records = (with_objects or records)[: self.node.IMAGES]
        return self._records

    def _images(self, model: nn.Module, record: Record) -> dict[str, np.ndarray]:
        """Draw the images of one record: name -> (H, W, 3) uint8 RGB."""
        seen = observe(self.cfg, model, record, class_names_of(self.cfg), layers=[])
        scenes = {
            "anchor_labels": label_scene(seen),
            "proposals": proposal_scene(seen),
            "box_refinement": refinement_scene(seen),
            "result": _with_ground_truth(result_scene(seen, self.node.SCORE_THRESHOLD)),
        }
        side = max(MIN_SIDE, *seen.image.shape[:2])
        images = {name: raster(scene, side) for name, scene in scenes.items()}
        strips = [strip(finding, seen.original) for finding in inspect_masks(seen, MASKS_SHOWN)]
        return {**images, "masks": np.concatenate(strips)} if strips else images


def _with_ground_truth(scene: Scene) -> Scene:
    """Show the ground truth, which people cannot switch on in a TensorBoard image."""
    layers = [replace(layer, shown=layer.shown or layer.name == "ground truth") for layer in scene.layers]
    return replace(scene, layers=layers)


@torch.no_grad()
def put_histograms(model: nn.Module, storage: EventStorage) -> None:
    """Put one histogram of weights and one of gradients per part of the model into ``storage``.

    Parts are those of :func:`~d2_maskrcnn.inspection.weights.group_of`. Of large parts, evenly spaced values are used.
    """
    groups: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(f"weights/{group_of(name)}", []).append(parameter)
        if parameter.grad is not None:
            groups.setdefault(f"gradients/{group_of(name)}", []).append(parameter.grad)
    for tag, tensors in groups.items():
        step = -(-sum(tensor.numel() for tensor in tensors) // MAX_VALUES)
        values = torch.cat([tensor.flatten()[::step].float() for tensor in tensors])
        values = values[values.isfinite()]
        if values.numel() > 0:
            storage.put_histogram(tag, values, bins=BINS)
