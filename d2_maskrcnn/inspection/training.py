"""Stage 6: while training, histograms of weights and gradients and images of the stages, for TensorBoard."""

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.inspection.anchors import label_scene, proposal_scene
from d2_maskrcnn.inspection.boxes import refinement_scene
from d2_maskrcnn.inspection.ground_truth import Record, class_names_of, dataset_records
from d2_maskrcnn.inspection.masks import inspect_masks, strip
from d2_maskrcnn.inspection.observation import observe
from d2_maskrcnn.inspection.result import result_scene
from d2_maskrcnn.visualization.scene import Scene, raster
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)

BINS = 64
MASKS_SHOWN = 6


def inspection_hooks(cfg: CfgNode) -> list[HookBase]:
    """Build the hooks of ``D2_MASKRCNN.INSPECT`` for ``Trainer(cfg, report_hooks=...)``; none if it is off."""
    return [InspectTraining(cfg)] if cfg.D2_MASKRCNN.INSPECT.ENABLED else []


class InspectTraining(HookBase):
    """At the end of every epoch, puts what ``D2_MASKRCNN.INSPECT`` asks for into the event storage.

    It keeps to ``MAX_SHARE`` of the training's time: an epoch is left out while what was spent and what the last report
    took would be more. (The first epoch always gets its report: what one takes is not known before.) It draws no random
    numbers, so a training with it ends in the same weights as one without. Gradients are those of the epoch's last
    step, after clipping. It belongs in front of the hook that lets the writers write, in the main process.

    Args:
        cfg: the training's config; its datasets are registered.
        images_in_epoch: after so many images an epoch has ended; by default the size of the trainer's training set.
    """

    def __init__(self, cfg: CfgNode, images_in_epoch: int | None = None) -> None:
        self.cfg = cfg
        self.node = cfg.D2_MASKRCNN.INSPECT
        self.images_in_epoch = images_in_epoch
        self.spent = 0.0  # seconds
        self.reports = 0
        self._last_cost = 0.0
        self._start = 0.0
        self._records: list[Record] | None = None

    trainer: Any

    def before_train(self) -> None:
        """Starts the clock."""
        if self.images_in_epoch is None:
            self.images_in_epoch = max(len(self.trainer.train_loader.records), 1)
        self._start = time.perf_counter()

    def after_step(self) -> None:
        """Reports if an epoch has ended and there is time for it."""
        if not self._epoch_ended(self.trainer.iter):
            return
        elapsed = time.perf_counter() - self._start
        if self.spent + self._last_cost > self.node.MAX_SHARE * elapsed:
            logger.debug(
                "Inspection left out at iteration %d: %.1f s of %.1f s spent", self.trainer.iter, self.spent, elapsed
            )
            return
        begin = time.perf_counter()
        self.report(unwrap(self.trainer.model), self.trainer.storage)
        self._last_cost = time.perf_counter() - begin
        self.spent += self._last_cost
        self.reports += 1

    def after_train(self) -> None:
        """Says what it cost."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        logger.info(
            "Inspection: %d reports took %.1f s, %.1f%% of the time",
            self.reports,
            self.spent,
            100 * self.spent / elapsed,
        )

    def report(self, model: nn.Module, storage: EventStorage) -> None:
        """Puts histograms and images into ``storage``."""
        if self.node.HISTOGRAMS:
            for name, parameter in model.named_parameters():
                _put_histogram(storage, f"weights/{name}", parameter.detach())
                if parameter.grad is not None:
                    _put_histogram(storage, f"gradients/{name}", parameter.grad)
        for index, record in enumerate(self._chosen_records()):
            for name, image in self._images(model, record).items():
                storage.put_image(f"inspection_{index}/{name}", image.transpose(2, 0, 1))  # (3, H, W)

    def _epoch_ended(self, iteration: int) -> bool:
        batch, size = self.cfg.SOLVER.IMS_PER_BATCH, self.images_in_epoch or 1
        return (iteration + 1) * batch // size > iteration * batch // size

    def _chosen_records(self) -> list[Record]:
        """The first images with objects of the first test set that is there, else of the training set."""
        if self._records is None:
            names = (*self.cfg.DATASETS.TEST, *self.cfg.DATASETS.TRAIN)
            found = next((records for records in map(dataset_records, names) if records), [])
            with_objects = [record for record in found if record.get("annotations")]
            self._records = (with_objects or found)[: self.node.IMAGES]
        return self._records

    def _images(self, model: nn.Module, record: Record) -> dict[str, np.ndarray]:
        """Name -> (H, W, 3) uint8 RGB."""
        seen = observe(self.cfg, model, record, class_names_of(self.cfg), layers=[])
        scenes: dict[str, Callable[[], Any]] = {
            "1_anchor_labels": lambda: label_scene(seen),
            "1_proposals": lambda: proposal_scene(seen),
            "2_refinement": lambda: refinement_scene(seen),
            "7_result": lambda: _with_annotation(result_scene(seen, self.node.SCORE_THRESHOLD)),
        }
        images = {name: raster(make()) for name, make in scenes.items()}
        strips = [strip(finding, seen.image, seen.output_size) for finding in inspect_masks(seen, MASKS_SHOWN)]
        if strips:
            images["3_masks"] = np.concatenate(strips)
        return images


def _with_annotation(scene: Scene) -> Scene:
    """The scene with its annotation shown: in an image that cannot be switched it is always wanted."""
    for layer in scene.layers:
        layer.shown |= layer.name == "annotated"
    return scene


def _put_histogram(storage: EventStorage, name: str, tensor: torch.Tensor) -> None:
    """Of the finite values; none if there are none (the non-finite loss is what reports them)."""
    values = tensor.detach().float().flatten()
    values = values[values.isfinite()]
    if values.numel() > 0:
        storage.put_histogram(name, values, bins=BINS)
