"""Paste masks into their boxes in the image.

The coordinate frame is that of :mod:`d2_maskrcnn.structures.masks`.
"""

import numpy as np
import torch

from d2_maskrcnn.structures.windows import EMPTY_WINDOW, Window

MASK_THRESHOLD = 0.5  # probability at or above which a pixel belongs to a mask
_CHUNK_BYTES = 2**26  # probabilities of whole images that are on a GPU at the same time


@torch.no_grad()
def paste_masks(
    masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float = MASK_THRESHOLD
) -> torch.Tensor:
    """Paste each mask into its box in an otherwise empty image (arXiv:1703.06870, section 3).

    A pixel is set where the probability at its center, as :func:`paste_crop` interpolates it, reaches ``threshold``.

    Args:
        masks: (N, S, S) probabilities in [0, 1].
        boxes: (N, 4) XYXY; boxes may leave the image, boxes without area or with non-finite sides get no pixels.
        height, width: of the image, in pixels.
        threshold: in (0, 1].

    Returns:
        (N, height, width) bool on the device of ``masks``.
    """
    masks, boxes = masks.float(), boxes.float()
    if masks.device.type != "cpu":
        return _paste_batched(masks, boxes, height, width, threshold)
    pasted = np.zeros((len(masks), height, width), dtype=bool)  # pages without a mask are never touched
    for image, mask, box in zip(pasted, masks.numpy(), boxes.numpy(), strict=True):
        window, values = paste_crop(mask, box, height, width)
        image[window.slices] = values >= threshold
    return torch.from_numpy(pasted)


def pasted_window(box: np.ndarray, height: int, width: int) -> Window:
    """Return the part of the image in which a pasted mask can differ from 0; see :func:`paste_crop`."""
    x0, y0, x1, y1 = (float(side) for side in box)
    columns, rows = _covered(x0, x1, width), _covered(y0, y1, height)
    return Window(columns.start, rows.start, columns.stop, rows.stop) if columns and rows else EMPTY_WINDOW


def paste_crop(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, part: Window | None = None
) -> tuple[Window, np.ndarray]:
    """Resize one mask to its box.

    The values lie at the centers of an S x S grid over the box and are interpolated bilinearly, falling to 0 outside.

    Args:
        mask: (S, S) float32 in [0, 1]. box: (4,) XYXY. height, width: of the image, in pixels.
        part: of the window that :func:`pasted_window` returns; default: all of it.

    Returns:
        The part of the image in which the mask can differ from 0, one pixel more than the box on each side, and the
        mask's values at its pixel centers, (h, w) float32. The window is empty where the box is outside the image,
        without area or not finite.
    """
    window = pasted_window(box, height, width) if part is None else part
    if window == EMPTY_WINDOW:
        return EMPTY_WINDOW, np.zeros((0, 0), dtype=np.float32)
    x0, y0, x1, y1 = (float(side) for side in box)
    padded = np.pad(mask, 1)  # (S + 2, S + 2), 0 outside the box
    x, weight_x = _neighbors(range(window.x0, window.x1), x0, x1, mask.shape[1])
    y, weight_y = _neighbors(range(window.y0, window.y1), y0, y1, mask.shape[0])
    resized = padded[:, x] * (1 - weight_x) + padded[:, x + 1] * weight_x  # (S + 2, w)
    # Indexing whole rows is as fast as a matrix product and does not start the threads of a BLAS library.
    values = np.diff(resized, axis=0)[y]  # (h, w)
    values *= weight_y[:, None]
    values += resized[y]
    return window, values


def _covered(start: float, end: float, size: int) -> range:
    """Return the pixels whose centers can lie in [start, end] and one more on each side, within [0, size)."""
    if not (np.isfinite(start) and np.isfinite(end) and end > start):
        return range(0)
    return range(min(max(int(start) - 1, 0), size), max(min(int(end) + 2, size), 0))


def _neighbors(pixels: range, start: float, end: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Locate pixel centers among the ``size`` values over [start, end] and the margin of one value on each side.

    Returns:
        (pixels,) index in [0, size] of the value before each center, and (pixels,) float32 weight of the value after
        it, in [0, 1].
    """
    centers = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    position = (centers - np.float32(start)) / np.float32(end - start) * np.float32(size) + np.float32(0.5)
    position = np.clip(position, 0, size + 1)  # the margins are at 0 and size + 1
    before = np.minimum(position.astype(np.intp), size)
    return before, (position - before).astype(np.float32)


def _paste_batched(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """Paste on a GPU, several whole images at once: no box is read back, so the host never waits."""
    valid = boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # (N,)
    padded = torch.nn.functional.pad(masks, (1, 1, 1, 1))  # (N, S + 2, S + 2), 0 outside the box
    pasted = torch.empty((len(masks), height, width), dtype=torch.bool, device=masks.device)
    step = max(1, _CHUNK_BYTES // (4 * height * width))
    for begin in range(0, len(masks), step):
        part = slice(begin, begin + step)
        x0, y0, x1, y1 = boxes[part].unbind(dim=1)
        rows = _interpolate(padded[part].mT, *_neighbors_batched(y0, y1, height, masks.shape[1]))  # (n, S + 2, height)
        values = _interpolate(rows.mT, *_neighbors_batched(x0, x1, width, masks.shape[2]))  # (n, height, width)
        pasted[part] = (values >= threshold) & valid[part, None, None]
    return pasted


def _neighbors_batched(
    start: torch.Tensor, end: torch.Tensor, pixels: int, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Locate all pixel centers of an axis as :func:`_neighbors` does, for n boxes: (n, pixels) each."""
    centers = torch.arange(pixels, dtype=torch.float32, device=start.device) + 0.5
    position = (centers - start[:, None]) / (end - start)[:, None] * size + 0.5
    position = position.nan_to_num(0.0).clamp(0, size + 1)
    before = position.long().clamp(max=size)
    return before, position - before


def _interpolate(values: torch.Tensor, before: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Interpolate the last axis of (n, K, size + 2) values at (n, pixels) positions: (n, K, pixels)."""
    index = before[:, None].expand(-1, values.shape[1], -1)
    low, high = values.gather(2, index), values.gather(2, index + 1)
    return low * (1 - weight[:, None]) + high * weight[:, None]
