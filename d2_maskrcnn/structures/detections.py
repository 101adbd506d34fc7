"""What was found in one image, as plain arrays on the CPU: for drawing, tracking and writing."""

from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks, Masks
from detectron2.structures import Instances


@dataclass
class Detections:
    """N detections of one image.

    Attributes:
        boxes: (N, 4) float32, XYXY in pixels of the image.
        scores: (N,) float32 in [0, 1].
        classes: (N,) int64, counted from 0.
        image_size: (H, W) of the image.
        masks: N masks, or None.
        track_ids: (N,) int64, one number for each object of a video, or None without tracking.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    image_size: tuple[int, int]
    masks: Masks | None = None
    track_ids: np.ndarray | None = None

    @classmethod
    def empty(cls, image_size: tuple[int, int]) -> "Detections":
        """No detections in an image of this size."""
        boxes, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        masks = BoxMasks(boxes, np.zeros((0, 1, 1), np.float32), image_size)
        return cls(boxes, np.zeros(0, np.float32), none, image_size, masks)

    @classmethod
    def from_instances(cls, instances: Instances, image_size: tuple[int, int] | None = None) -> "Detections":
        """Takes a model's output.

        Args:
            instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and perhaps ``pred_masks``: (N, 1, S, S)
                probabilities inside each box, (N, H, W) bool, or masks that are pasted when asked for.
            image_size: (H, W) of the image to scale to; the frame of ``instances`` if None. Detections that have no
                area in it are left out.
        """
        source = instances.image_size
        target = source if image_size is None else image_size
        boxes = instances.pred_boxes.tensor.detach().float().cpu().numpy()
        boxes = boxes * np.array([target[1] / source[1], target[0] / source[0]] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array([target[1], target[0]] * 2, np.float32))
        found = cls(
            boxes,
            instances.scores.detach().float().cpu().numpy(),
            instances.pred_classes.detach().cpu().numpy().astype(np.int64),
            (int(target[0]), int(target[1])),
            _masks_of(instances, boxes, target),
        )
        return found[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: slice | np.ndarray | list[int]) -> "Detections":
        """The detections picked by a slice, an index array or a bool array."""
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.classes[index],
            self.image_size,
            None if self.masks is None else self.masks[index],
            None if self.track_ids is None else self.track_ids[index],
        )


def _masks_of(instances: Instances, boxes: np.ndarray, target: tuple[int, int]) -> Masks | None:
    small = getattr(instances, "box_masks", None)
    if isinstance(small, BoxMasks):
        return small if small.image_size == tuple(target) else small.resized(*target)
    if not instances.has("pred_masks"):
        return None
    masks = instances.pred_masks.detach()
    if masks.dim() == 4:
        return BoxMasks(boxes, masks[:, 0].float().cpu().numpy(), target)
    if tuple(instances.image_size) != tuple(target):
        raise ValueError(f"whole-image masks of size {instances.image_size} cannot be scaled to {target}")
    return CropMasks.from_images(masks.cpu(), target)
