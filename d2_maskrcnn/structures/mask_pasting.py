"""From masks on a small grid over each box to masks of the whole image (arXiv:1703.06870, section 3)."""

import numpy as np
import torch


@torch.no_grad()
def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """Resizes each mask to its box and thresholds it.

    A mask's values sit at the centres of an S x S grid over the box and are interpolated bilinearly, falling to 0
    outside; a pixel is set where the value at the pixel's centre is at least ``threshold``. Bilinear interpolation is
    separable, so the resized mask is ``Y @ mask @ X.T`` with the two axes' interpolation matrices, over the box
    alone: no grid of the whole image is made.

    Args:
        masks: (n, S, S) in [0, 1]. boxes: (n, 4) XYXY in the output image.

    Returns:
        (n, height, width) bool.
    """
    pasted = _no_pixels((len(masks), height, width), masks.device)
    masks = masks.float()
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        columns, rows = _covered(x0, x1, width), _covered(y0, y1, height)
        if not columns or not rows:
            continue
        along_x = _interpolation(columns, x0, x1, masks.shape[2], masks.device)  # (w, S)
        along_y = _interpolation(rows, y0, y1, masks.shape[1], masks.device)  # (h, S)
        region = along_y @ masks[index] @ along_x.T  # (h, w)
        pasted[index, rows.start : rows.stop, columns.start : columns.stop] = region >= threshold
    return pasted


def _no_pixels(shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
    if device.type == "cpu":  # NumPy's zeros take memory only where something is written: inside the boxes
        return torch.from_numpy(np.zeros(shape, dtype=np.bool_))
    return torch.zeros(shape, dtype=torch.bool, device=device)


def _covered(start: float, end: float, size: int) -> range:
    """The pixels whose centres can lie in [start, end], and one more on each side, within the image."""
    return range(max(int(start) - 1, 0), min(int(end) + 2, size))


def _interpolation(pixels: range, start: float, end: float, size: int, device: torch.device) -> torch.Tensor:
    """(len(pixels), size): how much each mask value counts at each pixel's centre, the box reaching from start to
    end.
    """
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float32, device=device) + 0.5
    position = (centres - start) / (end - start) * size - 0.5  # in mask values; value i sits at i
    distance = position[:, None] - torch.arange(size, dtype=torch.float32, device=device)
    return (1 - distance.abs()).clamp(min=0)
