"""Evaluate a model that predicts images by tiles."""

from typing import Any

import torch
from torch import nn

from d2_maskrcnn.data.image_reading import read_image
from d2_maskrcnn.data.raw_images import read_raw
from d2_maskrcnn.image_files import MAX_TILED_PIXELS
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
            batched_inputs: dicts with ``file_name``; their resized images are not used.

        Returns:
            ``{"instances": ...}`` for each input, whose ``pred_masks`` yields one (H, W) bool array at a time.

        Raises:
            UserError: an image cannot be read.
        """
        return [{"instances": self._detect(str(item["file_name"]))} for item in batched_inputs]

    def _detect(self, file_name: str) -> Instances:
        path, channels = PathManager.get_local_path(file_name), self.predictor.raw_channels
        image = read_raw(path, channels, MAX_TILED_PIXELS) if channels else read_image(path, "BGR", MAX_TILED_PIXELS)
        (detections,) = self.predictor.predict([self.predictor.prepare(image)], [(image.shape[0], image.shape[1])])
        return _as_instances(detections)


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
