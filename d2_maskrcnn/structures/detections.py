"""The detections of one image as NumPy arrays, for drawing, tracking and writing."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, Masks
from detectron2.structures import Instances


@dataclass
class Detections:
    """N detections of one image.

    Attributes:
        boxes: (N, 4) float32, XYXY in pixels of the image.
        scores: (N,) float32 in [0, 1].
        classes: (N,) int64 in [0, number of classes).
        image_size: (H, W) of the image.
        masks: N masks in the same frame, or None.
        track_ids: (N,) int64, one id per object of a video; None without tracking.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    image_size: tuple[int, int]
    masks: Masks | None = None
    track_ids: np.ndarray | None = None

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> "Detections":
        """Return no detections, with empty masks, for an image of size (H, W)."""
        boxes = np.zeros((0, 4), np.float32)
        masks = BoxMasks(boxes, np.zeros((0, 1, 1), np.float32), image_size)
        return cls(boxes, np.zeros(0, np.float32), np.zeros(0, np.int64), image_size, masks)

    @classmethod
    def from_instances(cls, instances: Instances, image_size: tuple[int, int] | None = None) -> "Detections":
        """Convert a model's output.

        Args:
            instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and optionally ``pred_masks``: (N, 1, S, S)
                probabilities inside each box, (N, H, W) bool, :class:`Masks`, or the
                lazy masks of :class:`~d2_maskrcnn.structures.mask_instances.MaskInstances`.
            image_size: (H, W) of the image to scale to; None keeps the frame of ``instances``.

        Returns:
            The detections with boxes clipped to the image; those without area in it are dropped.

        Raises:
            ValueError: ``pred_masks`` are whole images and would have to be scaled.
        """
        source = instances.image_size
        height, width = source if image_size is None else image_size
        boxes = instances.pred_boxes.tensor.detach().float().cpu().numpy()
        boxes = boxes * np.array([width / source[1], height / source[0]] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        detections = cls(
            boxes,
            instances.scores.detach().float().cpu().numpy(),
            instances.pred_classes.detach().cpu().numpy().astype(np.int64),
            (int(height), int(width)),
            _masks_of(instances, boxes, (int(height), int(width))),
        )
        return detections[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: slice | np.ndarray | list[int]) -> "Detections":
        """Select detections by a slice, an index array or a bool array."""
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.classes[index],
            self.image_size,
            None if self.masks is None else self.masks[index],
            None if self.track_ids is None else self.track_ids[index],
        )

    def resized(self, height: int, width: int) -> "Detections":
        """Return the detections in an image of another size."""
        scale = np.array([width / self.image_size[1], height / self.image_size[0]] * 2, np.float32)
        masks = None if self.masks is None else self.masks.resized(height, width)
        return replace(self, boxes=self.boxes * scale, image_size=(height, width), masks=masks)


def _masks_of(instances: Instances, boxes: np.ndarray, image_size: tuple[int, int]) -> Masks | None:
    lazy = getattr(instances, "box_masks", None)
    if isinstance(lazy, BoxMasks):
        return lazy if lazy.image_size == image_size else lazy.resized(*image_size)
    if not instances.has("pred_masks"):
        return None
    masks = instances.pred_masks
    if isinstance(masks, torch.Tensor) and masks.dim() == 4:
        return BoxMasks(boxes, masks[:, 0].detach().float().cpu().numpy(), image_size)
    if tuple(instances.image_size) != image_size:
        raise ValueError(f"whole-image masks of size {instances.image_size} cannot be scaled to {image_size}")
    if isinstance(masks, Masks):
        return masks
    masks = masks.detach()
    return CropMasks.from_images(masks.cpu(), image_size)
