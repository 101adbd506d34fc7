"""Prediction on single images."""

from typing import Any

import numpy as np
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model


class DefaultPredictor:
    """The model of a config, with its weights, for one image at a time.

    >>> predictor = DefaultPredictor(cfg)  # doctest: +SKIP
    >>> instances = predictor(cv2.imread("image.jpg"))["instances"]  # doctest: +SKIP

    Args:
        cfg: it is cloned. ``MODEL.WEIGHTS`` is loaded onto ``MODEL.DEVICE``; ``INPUT.*_TEST`` and ``INPUT.FORMAT``
            say how images are prepared; the first of ``DATASETS.TEST``, if any, gives ``metadata``.

    Attributes:
        cfg: the cloned config.
        model: in evaluation mode.
        aug: the resizing.
        input_format: ``"BGR"`` or ``"RGB"``, what the model was trained on.
        metadata: of the test dataset, e.g. the names of the classes.

    Raises:
        ValueError: ``INPUT.FORMAT`` is neither BGR nor RGB.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        self.input_format = self.cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT {self.input_format!r}: the predictor knows RGB and BGR")
        self.model = build_model(self.cfg)
        self.model.eval()
        if self.cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(self.cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(self.cfg.MODEL.WEIGHTS)
        shortest = self.cfg.INPUT.MIN_SIZE_TEST
        self.aug = T.ResizeShortestEdge([shortest, shortest], self.cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """The model's output for one image.

        Args:
            original_image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` gives it.

        Returns:
            For detectors ``{"instances": Instances}``, in the frame of ``original_image``.
        """
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)  # (H', W', 3)
        tensor = torch.as_tensor(np.ascontiguousarray(image.astype("float32").transpose(2, 0, 1)))  # (3, H', W')
        with torch.no_grad():
            return self.model([{"image": tensor, "height": height, "width": width}])[0]
