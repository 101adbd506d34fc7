"""What most training and inference programs need: command line, setup, trainer, predictor."""

from typing import Any

import numpy as np
import torch

from detectron2._names import lookup
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.catalog import Metadata
from detectron2.engine.default_trainer import DefaultTrainer
from detectron2.engine.setup import create_ddp_model, default_argument_parser, default_setup, default_writers
from detectron2.modeling import build_model

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


class DefaultPredictor:
    """Run the model of a config on single images.

    >>> predictor = DefaultPredictor(cfg)  # doctest: +SKIP
    >>> instances = predictor(cv2.imread("image.jpg"))["instances"]  # doctest: +SKIP

    Args:
        cfg: names the model and its weights (``MODEL.WEIGHTS``); ``INPUT.*_TEST`` and ``INPUT.FORMAT`` define how
            images are prepared, the first dataset of ``DATASETS.TEST`` the metadata. Cloned.

    Attributes:
        cfg: the clone.
        model: in evaluation mode.
        aug: the resizing.
        input_format: order of the channels that the model was trained on, ``"BGR"`` or ``"RGB"``.
        metadata: of the first test dataset; its class names come from the checkpoint if the dataset has none. Not set
            if there are neither a test dataset nor class names in the checkpoint.

    Raises:
        ValueError: ``INPUT.FORMAT`` is neither BGR nor RGB.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        node, datasets = self.cfg.INPUT, self.cfg.DATASETS.TEST
        self.input_format = node.FORMAT
        if self.input_format not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is {self.input_format!r}: expected BGR or RGB")
        self.aug = T.ResizeShortestEdge([node.MIN_SIZE_TEST, node.MIN_SIZE_TEST], node.MAX_SIZE_TEST)
        if datasets:
            self.metadata = MetadataCatalog.get(datasets[0])
        self.model = build_model(self.cfg)
        self.model.eval()
        checkpoint = DetectionCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)
        names = (checkpoint.get("metadata") or {}).get("thing_classes")
        if names and not (datasets and self.metadata.get("thing_classes")):
            self.metadata = Metadata(name=datasets[0] if datasets else "checkpoint", thing_classes=list(names))

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Return the model's output for one image.

        Args:
            original_image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` returns it.

        Returns:
            For detectors ``{"instances": Instances}`` in the frame of ``original_image``.

        Raises:
            ValueError: ``original_image`` is not such an array.
        """
        _check_image(original_image)
        height, width = original_image.shape[:2]
        ordered = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        resized = self.aug.get_transform(ordered).apply_image(ordered).astype(np.float32)  # (H', W', 3)
        record = {"image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))}
        with torch.no_grad():
            return self.model([{**record, "height": height, "width": width}])[0]


def _check_image(image: Any) -> None:
    """Raise ValueError for what is not an image, and for one whose values are fractions of 255."""
    expected = "expected an image as cv2.imread returns it, (H, W, 3) uint8 in BGR order"
    if not isinstance(image, np.ndarray):
        hint = " (cv2.imread returns None for a file that it cannot read)" if image is None else ""
        raise ValueError(f"{expected}, got a {type(image).__name__}{hint}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{expected}, got an array of shape {image.shape}")
    if not np.issubdtype(image.dtype, np.number) or (np.issubdtype(image.dtype, np.floating) and not image.max() > 1):
        raise ValueError(f"{expected}, got {image.dtype} with values from {image.min()} to {image.max()}")


__getattr__ = lookup(__name__)
