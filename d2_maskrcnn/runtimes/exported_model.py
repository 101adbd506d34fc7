"""Run an exported detector behind the interface of the PyTorch model that it was made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from d2_maskrcnn.data.raw_images import raw_channels
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.meta_arch import MaskRCNN
from d2_maskrcnn.modeling.precision import has_native_bfloat16
from d2_maskrcnn.runtimes.metadata import FileInfo
from d2_maskrcnn.runtimes.sessions import Session, open_session, read_metadata
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances


class ExportedModel(nn.Module):
    """Run an exported file; inputs and results are those of :class:`MaskRCNN` in evaluation mode.

    Args:
        session: the open file. info: its metadata.
        score_threshold: detections must exceed it; it has no effect below the threshold in the file.
        raw_channels: number of channels of the images if they are float32; 0 for 8-bit colors.
    """

    def __init__(self, session: Session, info: FileInfo, score_threshold: float = 0.0, raw_channels: int = 0) -> None:
        super().__init__()
        self.session, self.info, self.score_threshold = session, info, score_threshold
        self.channels, self.dtype = raw_channels or 3, np.float32 if raw_channels else np.uint8
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the file runs; results are on the CPU."""
        return self.session.device

    def set_precision(self, name: str) -> torch.dtype:
        """Choose the precision in which the runtime computes, and return it.

        Args:
            name: ``auto`` takes bfloat16 where the runtime and the CPU support it.

        Raises:
            UserError: the runtime of this file cannot compute in it.
        """
        if name == "auto":
            name = "bfloat16" if "bfloat16" in self.session.precisions and has_native_bfloat16() else "float32"
        if name not in self.session.precisions:
            raise UserError(
                f"precision {name!r}: files of this format compute in {', '.join(self.session.precisions)}, or as they "
                "were exported; export the model again with another precision."
            )
        self.session.set_precision(name)
        return torch.bfloat16 if name == "bfloat16" else torch.float32

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """See :meth:`MaskRCNN.forward` in evaluation mode."""
        return MaskRCNN.postprocess(self.inference(batched_inputs, do_postprocess=False), batched_inputs)

    def inference(
        self, batched_inputs: list[dict[str, Any]], detected_instances: Any = None, do_postprocess: bool = True
    ) -> Any:
        """See :meth:`MaskRCNN.inference`.

        Raises:
            UserError: ``detected_instances`` are given: an exported file cannot add masks to given boxes.
        """
        if detected_instances is not None:
            raise UserError("An exported file cannot predict masks of given boxes: use the checkpoint instead.")
        images = [np.asarray(item["image"].cpu(), dtype=self.dtype) for item in batched_inputs]
        step = self.info.batch or max(len(images), 1)
        detections = [each for i in range(0, len(images), step) for each in self._detect(images[i : i + step])]
        return MaskRCNN.postprocess(detections, batched_inputs) if do_postprocess else detections

    def _detect(self, images: list[np.ndarray]) -> Iterator[Instances]:
        """Detect objects in one batch of (C, h, w) images, each in its own frame."""
        inputs = self.inputs(images)
        sizes = inputs["sizes"]
        outputs = dict(zip(self.info.outputs, self.session.run(inputs["images"], sizes), strict=True))
        for index, image in enumerate(images):
            chosen = (outputs["image_indices"] == index) & (outputs["scores"] > self.score_threshold)
            yield _instances(outputs, chosen, (image.shape[1], image.shape[2]), sizes[index])

    def inputs(self, images: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the file's inputs for one batch of (C, h, w) images."""
        fitted = [self._fit(image) for image in images]
        count = self.info.batch or len(images)
        height, width = self.info.size or (max(i.shape[1] for i in fitted), max(i.shape[2] for i in fitted))
        batch = np.zeros((count, self.channels, height, width), self.dtype)
        sizes = np.zeros((count, 2), np.int64)  # images that fill up a batch have no pixels, so no detections either
        for index, image in enumerate(fitted):
            batch[index, :, : image.shape[1], : image.shape[2]] = image
            sizes[index] = image.shape[1:]
        return {"images": batch, "sizes": sizes}

    def _fit(self, image: np.ndarray) -> np.ndarray:
        """Shrink an image that is larger than those that the file takes."""
        if self.info.size is None:
            return image
        scale = min(self.info.size[0] / image.shape[1], self.info.size[1] / image.shape[2])
        if scale >= 1:
            return image
        size = (max(int(image.shape[2] * scale), 1), max(int(image.shape[1] * scale), 1))
        planes = [cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in image]
        return np.stack(planes)


def _instances(
    outputs: dict[str, np.ndarray], chosen: np.ndarray, frame: tuple[int, int], size: np.ndarray
) -> Instances:
    """Return the chosen detections, scaled from an image of ``size`` (h, w) to ``frame``."""
    boxes = Boxes(torch.from_numpy(outputs["boxes"][chosen]))
    if frame != tuple(size):
        boxes.scale(frame[1] / size[1], frame[0] / size[0])
    instances = Instances(
        frame,
        pred_boxes=boxes,
        scores=torch.from_numpy(outputs["scores"][chosen]),
        pred_classes=torch.from_numpy(outputs["classes"][chosen]),
    )
    if "masks" in outputs:
        instances.pred_masks = torch.from_numpy(outputs["masks"][chosen][:, None])
    return instances


def read_info(path: str | Path) -> FileInfo:
    """Read the metadata of an exported file.

    Raises:
        UserError: see :func:`read_metadata`.
    """
    return FileInfo.from_json(read_metadata(path), str(path))


def load_exported(cfg: CfgNode, device: torch.device) -> tuple[ExportedModel, FileInfo]:
    """Open ``MODEL.WEIGHTS``, an exported file.

    Args:
        cfg: ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` is applied to the detections; the other values that matter must be
            those of the file.
        device: used where the runtime supports it.

    Raises:
        UserError: see :func:`open_session`; or ``cfg`` belongs to another model.
    """
    path = cfg.MODEL.WEIGHTS
    info, session = read_info(path), open_session(path, device)
    names = info.class_names
    if names and len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise UserError(
            f"{path} has {len(names)} classes, MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}: use "
            "the config that the model was exported with."
        )
    if info.channels != cfg.INPUT.FORMAT:
        raise UserError(
            f"{path} takes {info.channels} images, INPUT.FORMAT is {cfg.INPUT.FORMAT}: use the config that the model "
            "was exported with."
        )
    return ExportedModel(session, info, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, raw_channels(cfg)), info
