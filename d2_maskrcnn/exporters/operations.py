"""Operations on boxes, scores and masks without loops over images, which exporters can trace.

Shape shorthand: G groups that are suppressed separately, R boxes of a group, D detections of all images, S mask side.
"""

from collections.abc import Callable

import torch
from torchvision.ops import nms

from d2_maskrcnn.structures.mask_pasting import MASK_THRESHOLD

DROPPED = -1e30  # score of a box that is not a candidate, far below every logit
KEPT = DROPPED / 2  # scores above this are of candidates
_GROUP_DISTANCE = 2.0**20  # pixels between the boxes of two groups, in float64

# (boxes (G, R, 4), scores (G, R), IoU threshold, boxes to keep per group) -> scores, DROPPED where suppressed
Suppress = Callable[[torch.Tensor, torch.Tensor, float, int], torch.Tensor]


def suppress(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, limit: int) -> torch.Tensor:
    """Apply non-maximum suppression to each group of boxes, by torchvision's operator.

    Args:
        boxes: (G, R, 4) XYXY, in [0, 2**20) pixels. scores: (G, R); ``DROPPED`` for boxes that are no candidates.
        threshold: IoU in [0, 1] above which the lower-scored of two boxes is dropped.
        limit: not used: later steps keep the best boxes anyway. Other implementations stop at this number per group.

    Returns:
        (G, R): the scores of the boxes that remain, ``DROPPED`` for the others.
    """
    group, index = (scores > KEPT).nonzero(as_tuple=True)
    chosen = scores[group, index]
    apart = boxes[group, index].double() + (group * _GROUP_DISTANCE).double()[:, None]
    kept = nms(apart, chosen.double(), threshold)
    return torch.full_like(scores, DROPPED).index_put((group[kept], index[kept]), chosen[kept])


def clip(boxes: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Limit boxes (..., 4) to [0, limits], where limits (..., 4) are width, height, width, height; NaN stays NaN."""
    return torch.minimum(boxes.clamp(min=0), limits)


def cell_centers(height: int, width: int, stride: int, offset: float) -> torch.Tensor:
    """Return x, y, x, y of each position of a level in pixels of the images, row by row: (height * width, 4)."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None, :]
    y, x = y + torch.zeros_like(x), x + torch.zeros_like(y)  # expand() would forbid exporters a height or width of 1
    x, y = (x.flatten() + offset) * stride, (y.flatten() + offset) * stride
    return torch.stack((x, y, x, y), dim=-1).float()


def paste(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Paste masks into images, as :func:`d2_maskrcnn.structures.mask_pasting.paste_masks` does, by two matrix products.

    Args:
        masks: (D, S, S) probabilities. boxes: (D, 4) XYXY.

    Returns:
        (D, height, width) bool.
    """
    side = masks.shape[-1]
    rows = _hat_weights(boxes[:, 1], boxes[:, 3], height, side)  # (D, height, S)
    columns = _hat_weights(boxes[:, 0], boxes[:, 2], width, side)  # (D, width, S)
    return rows @ masks @ columns.transpose(1, 2) >= MASK_THRESHOLD


def _hat_weights(start: torch.Tensor, end: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """Return the weight of each of ``side`` values over [start, end] at each pixel center: (D, size, side)."""
    pixels = torch.arange(size, device=start.device) + 0.5
    position = (pixels - start[:, None]) / (end - start)[:, None] * side - 0.5  # (D, size)
    return (1 - (position[..., None] - torch.arange(side, device=start.device)).abs()).clamp(min=0)
