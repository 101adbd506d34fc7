"""Similarity of boxes and masks."""

import cv2
import numpy as np

from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.lazy_masks import BoxMasks, CropMasks
from d2_maskrcnn.structures.masks import coco_iou
from d2_maskrcnn.structures.windows import Crop, Window, common_pixels, restrict

GRID = 28  # side of the grids that masks are stored as
MAX_SIDE = 256  # longer side, in pixels, of the downscaled image in which masks are compared


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
    areas_a, areas_b = ([np.count_nonzero(pixels) for _, pixels in crops] for crops in (a, b))
    result = np.zeros((len(a), len(b)), np.float32)
    for i, j in np.argwhere(coco_iou(boxes_a, boxes_b) > 0):
        shared = common_pixels(a[i], b[j])
        result[i, j] = shared / max(1, areas_a[i] + areas_b[j] - shared)
    return result


def _crops(masks: BoxMasks) -> list[Crop]:
    return [masks.crop(index) for index in range(len(masks))]


def _grid(masks: CropMasks, box: np.ndarray, index: int) -> np.ndarray:
    """Resample the part of a mask inside its box to the grid."""
    x0, y0, x1, y1 = (int(v) for v in np.concatenate((np.floor(box[:2]), np.ceil(box[2:]))))
    frame = Window(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
    inside = np.zeros((frame.y1 - frame.y0, frame.x1 - frame.x0), np.float32)
    window, pixels = restrict(masks.crop(index), frame)
    inside[window.inside(frame).slices] = pixels
    return cv2.resize(inside, (GRID, GRID), interpolation=cv2.INTER_AREA)


def _stack(grids: list[np.ndarray]) -> np.ndarray:
    return np.stack(grids) if grids else np.zeros((0, GRID, GRID), np.float32)
