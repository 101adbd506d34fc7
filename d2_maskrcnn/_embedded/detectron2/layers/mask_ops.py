"""Paste the square masks that a network predicts into images."""

import torch
from torch.nn import functional as F

from detectron2._names import lookup
from detectron2.structures.boxes import Boxes

# On a GPU, whole images are resampled, as many instances at a time as fit into this many bytes.
_CHUNK_BYTES = 2**30
# Bytes per pixel and instance: a sampling position (two float32) and a result (one).
_BYTES_PER_PIXEL = 12
# A box outside every image, which replaces boxes without area, so that their masks stay empty.
_NOWHERE = (-2.0, -2.0, -1.0, -1.0)


def paste_masks_in_image(
    masks: torch.Tensor, boxes: Boxes | torch.Tensor, image_shape: tuple[int, int], threshold: float = 0.5
) -> torch.Tensor:
    """Paste each mask into its box in an otherwise empty image.

    The cells of a mask are interpolated bilinearly at the centers (x + 0.5, y + 0.5) of the pixels. Outside its box a
    mask is 0, so that values fade over the outermost half cell.

    Args:
        masks: (N, M, M) probabilities in [0, 1].
        boxes: (N, 4) XYXY in pixels of the image. A box may exceed the image; one without area gets an empty mask.
        image_shape: (height, width) of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask; negative for soft masks.

    Returns:
        (N, height, width) bool, or uint8 with the probability in 0...255 if ``threshold`` is negative.

    Raises:
        ValueError: masks are not square, or the numbers of boxes and masks differ.
    """
    box_tensor = boxes.tensor if isinstance(boxes, Boxes) else boxes
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"Masks must be (N, M, M), got {tuple(masks.shape)}")
    if len(box_tensor) != len(masks):
        raise ValueError(f"Pasting needs one box per mask, got {len(box_tensor)} boxes for {len(masks)} masks")
    height, width = image_shape
    pasted = masks.new_zeros((len(masks), height, width), dtype=torch.bool if threshold >= 0 else torch.uint8)
    masks, box_tensor = masks.float(), box_tensor.float()
    if masks.device.type == "cpu":
        _paste_one_by_one(masks, box_tensor, pasted, threshold)
    else:
        _paste_in_chunks(masks, box_tensor, pasted, threshold)
    return pasted


def _paste_one_by_one(masks: torch.Tensor, boxes: torch.Tensor, pasted: torch.Tensor, threshold: float) -> None:
    """Fill ``pasted`` by resampling the pixels around each box only."""
    height, width = pasted.shape[1:]
    for mask, box, image in zip(masks, boxes, pasted, strict=True):
        left, top = (max(0, int(side)) for side in (box[:2].floor() - 1).tolist())
        right, bottom = (box[2:].ceil() + 1).tolist()
        right, bottom = min(width, int(right)), min(height, int(bottom))
        if right > left and bottom > top:
            values = _resample(mask[None], box[None], (left, right), (top, bottom))
            image[top:bottom, left:right] = _quantize(values, threshold)[0]


def _paste_in_chunks(masks: torch.Tensor, boxes: torch.Tensor, pasted: torch.Tensor, threshold: float) -> None:
    """Fill ``pasted`` without reading the boxes from the GPU, which would block."""
    height, width = pasted.shape[1:]
    at_once = max(1, _CHUNK_BYTES // max(1, height * width * _BYTES_PER_PIXEL))
    for start in range(0, len(masks), at_once):
        part = slice(start, start + at_once)
        pasted[part] = _quantize(_resample(masks[part], boxes[part], (0, width), (0, height)), threshold)


def _resample(masks: torch.Tensor, boxes: torch.Tensor, xs: tuple[int, int], ys: tuple[int, int]) -> torch.Tensor:
    """Return (n, rows, columns) float32: masks (n, M, M) in columns ``xs[0]:xs[1]`` and rows ``ys[0]:ys[1]``."""
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1, keepdim=True)  # (n, 1)
    boxes = torch.where(has_area, boxes, boxes.new_tensor(_NOWHERE))  # no division by 0
    x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(dim=1))  # (n, 1) each
    x = torch.arange(*xs, device=masks.device, dtype=torch.float32) + 0.5
    y = torch.arange(*ys, device=masks.device, dtype=torch.float32) + 0.5
    x = (x - x0) / (x1 - x0) * 2 - 1  # (n, width) in the mask's own frame: [-1, 1] from edge to edge
    y = (y - y0) / (y1 - y0) * 2 - 1  # (n, height)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)  # (n, height, width, 2)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _quantize(values: torch.Tensor, threshold: float) -> torch.Tensor:
    return values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)


__getattr__ = lookup(__name__)
