"""Evaluate a model that predicts images by tiles."""

from typing import Any

import torch
from torch import nn

from d2_maskrcnn.data.image_reading import size_mismatch
from d2_maskrcnn.data.large_images import read_for_tiles
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.structures.detections import Detections
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager


class TiledModel(nn.Module):
    """Wrap a model so that an evaluation predicts the whole image files by tiles, as :class:`Predictor` does.

    Args:
        cfg: ``D2_MASKRCNN.INFERENCE`` has the tiles' size and overlap.
        model: in evaluation mode.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.predictor = Predictor.of_model(cfg, model)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Predict the image files of a batch.

        Args:
            batched_inputs: dicts with ``file_name``, and optionally ``width`` and ``height``; images are not used.

        Returns:
            ``{"instances": ...}`` for each input, whose ``pred_masks`` yields one (H, W) bool array at a time.

        Raises:
            UserError: an image cannot be read, or does not have the size of its record.
        """
        return [{"instances": self._detect(item)} for item in batched_inputs]

    def _detect(self, record: dict[str, Any]) -> Instances:
        name, channels = str(record["file_name"]), self.predictor.raw_channels
        path = PathManager.get_local_path(name)
        image = read_for_tiles(path, channels, "BGR")
        size = (image.shape[1], image.shape[0])
        expected: tuple[Any, Any] = record.get("width", size[0]), record.get("height", size[1])
        if size != expected:
            raise UserError(size_mismatch(name, size, expected))
        (detections,) = self.predictor.predict([self.predictor.prepare(image)], [size[::-1]])
        return _as_instances(detections)


def without_pixels(record: dict[str, Any]) -> dict[str, Any]:
    """Map a dataset record to an input of :class:`TiledModel`, which reads the image itself."""
    return {key: value for key, value in record.items() if key != "annotations"}


def _as_instances(detections: Detections) -> Instances:
    """Convert detections without making whole images of their masks: evaluators read RLEs, or one mask at a time."""
    instances = Instances(detections.image_size)
    instances.pred_boxes = Boxes(torch.from_numpy(detections.boxes))
    instances.scores = torch.from_numpy(detections.scores)
    instances.pred_classes = torch.from_numpy(detections.classes)
    if detections.masks is not None:
        instances.pred_masks = detections.masks
        instances.pred_masks_rle = detections.masks.rles()
    return instances
