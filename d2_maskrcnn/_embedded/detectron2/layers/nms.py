"""Non-maximum suppression."""

import torch
from torchvision.ops import batched_nms as _batched_nms
from torchvision.ops import nms

from detectron2._names import lookup

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Remove every box that overlaps a higher-scored box *of its group* by more than the threshold.

    Args:
        boxes: (N, 4) XYXY. Converted to float32, since half precision cannot represent the offsets that separate
            groups.
        scores: (N,).
        idxs: (N,) group of each box, such as its class or feature level.
        iou_threshold: in [0, 1].

    Returns:
        (K,) int64: indices of the remaining boxes, by descending score.
    """
    return _batched_nms(boxes.float(), scores, idxs, iou_threshold)


__getattr__ = lookup(__name__)
