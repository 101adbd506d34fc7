"""Similarity of boxes and masks."""

import cv2
import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks

GRID = 28  # side of the grids that masks are stored as
MAX_SIDE = 256  # longer side, in pixels, of the downscaled image in which masks are compared


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the IoU of (N, 4) and (M, 4) XYXY boxes, (N, M) in [0, 1]; 0 for boxes without area."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    sides = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = sides[..., 0] * sides[..., 1]
    union = _areas(a)[:, None] + _areas(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def expanded(boxes: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """Expand (N, 4) XYXY boxes on each side by ``share`` of their width or height.

    Objects that move too fast to overlap themselves are matched by expanded boxes (arXiv:2211.14317).
    """
    shares = np.broadcast_to(np.asarray(share, np.float32).reshape(-1, 1), (len(boxes), 1))
    margin = (boxes[:, 2:] - boxes[:, :2]) * shares
    return np.concatenate((boxes[:, :2] - margin, boxes[:, 2:] + margin), axis=1)


def mask_grids(detections: Detections) -> np.ndarray | None:
    """Return each mask as (28, 28) probabilities inside its box, (N, 28, 28) float32; None without masks."""
    masks = detections.masks
    if isinstance(masks, BoxMasks):
        grids = masks.probabilities
        if grids.shape[1:] == (GRID, GRID):
            return grids
        return _stack([cv2.resize(grid, (GRID, GRID), interpolation=cv2.INTER_LINEAR) for grid in grids])
    if isinstance(masks, CropMasks):
        return _stack([_grid(masks, box, index) for index, box in enumerate(detections.boxes)])
    return None


def mask_iou(
    grids_a: np.ndarray, boxes_a: np.ndarray, grids_b: np.ndarray, boxes_b: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """Compute the IoU of masks, (N, M) in [0, 1]; 0 for pairs whose boxes do not overlap.

    Args:
        grids_a, grids_b: (N, S, S) and (M, S, S) in [0, 1].
        boxes_a, boxes_b: (N, 4) and (M, 4) XYXY boxes of the grids.
        image_size: (H, W); only pixels inside the image count, at a resolution of at most ``MAX_SIDE``.
    """
    scale = min(1.0, MAX_SIDE / max(image_size))
    small = (max(1, round(image_size[0] * scale)), max(1, round(image_size[1] * scale)))
    a = _crops(BoxMasks(boxes_a, grids_a, image_size).resized(*small))
    b = _crops(BoxMasks(boxes_b, grids_b, image_size).resized(*small))
    result = np.zeros((len(a), len(b)), np.float32)
    for i, j in np.argwhere(box_iou(boxes_a, boxes_b) > 0):
        (wa, pa, area_a), (wb, pb, area_b) = a[i], b[j]
        x0, y0, x1, y1 = max(wa.x0, wb.x0), max(wa.y0, wb.y0), min(wa.x1, wb.x1), min(wa.y1, wb.y1)
        if x1 <= x0 or y1 <= y0:
            continue
        left = pa[y0 - wa.y0 : y1 - wa.y0, x0 - wa.x0 : x1 - wa.x0]
        right = pb[y0 - wb.y0 : y1 - wb.y0, x0 - wb.x0 : x1 - wb.x0]
        shared = int(np.count_nonzero(left & right))
        result[i, j] = shared / max(1, area_a + area_b - shared)
    return result


def _crops(masks: BoxMasks) -> list[tuple]:
    """Return window, pixels and area of each mask."""
    crops = [masks.crop(index) for index in range(len(masks))]
    return [(window, pixels, int(np.count_nonzero(pixels))) for window, pixels in crops]


def _grid(masks: CropMasks, box: np.ndarray, index: int) -> np.ndarray:
    """Resample the part of a mask inside its box to the grid."""
    window, pixels = masks.crop(index)
    x0, y0, x1, y1 = (int(v) for v in np.concatenate((np.floor(box[:2]), np.ceil(box[2:]))))
    inside = np.zeros((max(1, y1 - y0), max(1, x1 - x0)), np.float32)
    left, top, right, bottom = max(x0, window.x0), max(y0, window.y0), min(x1, window.x1), min(y1, window.y1)
    if right > left and bottom > top:
        part = pixels[top - window.y0 : bottom - window.y0, left - window.x0 : right - window.x0]
        inside[top - y0 : bottom - y0, left - x0 : right - x0] = part
    return cv2.resize(inside, (GRID, GRID), interpolation=cv2.INTER_AREA)


def _stack(grids: list[np.ndarray]) -> np.ndarray:
    return np.stack(grids) if grids else np.zeros((0, GRID, GRID), np.float32)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
