"""Non-maximum suppression within groups."""

import torch
from torchvision.ops import batched_nms as _batched_nms
from torchvision.ops import nms

from detectron2._names import lookup

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Drops every box that overlaps a higher-scored box *of its own group* by more than the threshold.

    Args:
        boxes: (N, 4) XYXY. Taken in float32: in half precision the offset that keeps groups apart would swallow the
            coordinates.
        scores: (N,).
        idxs: (N,) the group of each box: a category, or a feature map.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64: indices of the boxes that are kept, the highest score first.
    """
    return _batched_nms(boxes.float(), scores, idxs, iou_threshold)


__getattr__ = lookup(__name__)
