"""Instance masks that stay small: what a mask head predicts, or a bitmap of the box, instead of a whole image each.

A hundred masks of a 3840x2160 image are 0.8 GB as (N, H, W) bool and 0.3 MB as the 28x28 probabilities that they are
pasted from. All coordinates are XYXY pixels of the image; a pixel's centre is at (x + 0.5, y + 0.5).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as mask_util

MASK_THRESHOLD = 0.5
Index = int | slice | Sequence[int] | np.ndarray


class Window(NamedTuple):
    """A rectangle of whole pixels inside the image: columns x0 to x1 and rows y0 to y1, the ends not included."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Picks the rectangle out of an (H, W, ...) array."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


class Masks(ABC):
    """N masks of one image, each made when it is asked for and only inside its box.

    Attributes:
        image_size: (H, W) of the image.
    """

    image_size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Index) -> "Masks":
        """The masks picked by an integer (a batch of one), slice, index array or bool array."""

    @abstractmethod
    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """Where mask ``index`` can have pixels, and those pixels: (h, w) uint8, 1 inside the mask and 0 outside.

        The window is empty, and so is the array, where the box lies outside of the image.
        """

    def __iter__(self) -> Iterator[np.ndarray]:
        """One (H, W) bool image after the other; only one of them is in memory at a time."""
        for index in range(len(self)):
            yield self.image(index)

    def image(self, index: int) -> np.ndarray:
        """Mask ``index`` as a whole image, (H, W) bool."""
        window, pixels = self.crop(index)
        whole = np.zeros(self.image_size, dtype=bool)
        whole[window.slices] = pixels
        return whole

    def rle(self, index: int) -> dict[str, Any]:
        """Mask ``index`` in COCO's compressed run-length code, ``counts`` being a str as in COCO's JSON."""
        return encode_rle(*self.crop(index), self.image_size)

    def rles(self) -> list[dict[str, Any]]:
        """All masks in COCO's compressed run-length code."""
        return [self.rle(index) for index in range(len(self))]

    def polygons(self, index: int) -> list[np.ndarray]:
        """The outlines of mask ``index``, holes left out: (K, 2) int32 arrays of pixels (x, y), K >= 3."""
        window, pixels = self.crop(index)
        if pixels.size == 0:
            return []
        outlines, _ = cv2.findContours(
            pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(window.x0, window.y0)
        )
        return [outline[:, 0] for outline in outlines if len(outline) >= 3]

    def areas(self) -> np.ndarray:
        """(N,) int64: pixels of each mask."""
        return np.array([int(np.count_nonzero(self.crop(i)[1])) for i in range(len(self))], dtype=np.int64)


class BoxMasks(Masks):
    """Masks as a mask head predicts them: probabilities on an S x S grid over each box (arXiv:1703.06870, section 3).

    Args:
        boxes: (N, 4) float, XYXY; they may leave the image.
        probabilities: (N, S, S) float in [0, 1].
        image_size: (H, W) of the image.
        threshold: probability from which on a pixel belongs to the mask.

    Raises:
        ValueError: the shapes do not fit together.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        probabilities: np.ndarray,
        image_size: tuple[int, int],
        threshold: float = MASK_THRESHOLD,
    ) -> None:
        if boxes.shape != (len(boxes), 4) or probabilities.ndim != 3 or len(boxes) != len(probabilities):
            raise ValueError(
                f"BoxMasks need (N, 4) boxes and (N, S, S) probabilities, got {boxes.shape} and {probabilities.shape}"
            )
        self.boxes = np.asarray(boxes, dtype=np.float32)
        self.probabilities = np.asarray(probabilities, dtype=np.float32)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> "BoxMasks":
        index = [index] if isinstance(index, int) else index
        return BoxMasks(self.boxes[index], self.probabilities[index], self.image_size, self.threshold)

    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """See :meth:`Masks.crop`."""
        window, values = self.probability_crop(index)
        return window, (values >= self.threshold).view(np.uint8)  # (h, w)

    def probability_crop(self, index: int) -> tuple[Window, np.ndarray]:
        """Where mask ``index`` can have pixels, and its probabilities there before thresholding: (h, w) float32.

        Values between the grid's are interpolated bilinearly; outside the box they fall to 0. That is separable, so the
        resized mask is ``Y @ mask @ X.T`` with one matrix for each axis.
        """
        x0, y0, x1, y1 = (float(side) for side in self.boxes[index])
        height, width = self.image_size
        columns, rows = _covered(x0, x1, width), _covered(y0, y1, height)
        window = Window(columns.start, rows.start, columns.stop, rows.stop)
        if not columns or not rows or x1 <= x0 or y1 <= y0:
            return Window(0, 0, 0, 0), np.zeros((0, 0), dtype=np.float32)
        padded = np.pad(self.probabilities[index], 1)  # (S + 2, S + 2): 0 outside
        x, beyond_x = _between(columns, x0, x1, padded.shape[1] - 2)
        y, beyond_y = _between(rows, y0, y1, padded.shape[0] - 2)
        wide = padded[:, x] * (1 - beyond_x) + padded[:, x + 1] * beyond_x  # (S + 2, w)
        # Rows are copied whole, which is as fast as a matrix product and does not wake the threads of a BLAS library.
        values = np.diff(wide, axis=0)[y]  # (h, w)
        values *= beyond_y[:, None]
        values += wide[y]
        return window, values

    def moved_to(self, boxes: np.ndarray) -> "BoxMasks":
        """The same shapes stretched into other boxes, (N, 4) XYXY."""
        return BoxMasks(boxes, self.probabilities, self.image_size, self.threshold)

    def resized(self, height: int, width: int) -> "BoxMasks":
        """The same masks in an image of another size."""
        scale = np.array([width / self.image_size[1], height / self.image_size[0]] * 2, dtype=np.float32)
        return BoxMasks(self.boxes * scale, self.probabilities, (height, width), self.threshold)


class CropMasks(Masks):
    """Masks as bitmaps of their tight boxes: for masks that come from elsewhere as whole images.

    Args:
        windows: where each bitmap lies.
        bitmaps: (h, w) uint8 in {0, 1} for each window.
        image_size: (H, W) of the image.
    """

    def __init__(self, windows: list[Window], bitmaps: list[np.ndarray], image_size: tuple[int, int]) -> None:
        self.windows = windows
        self.bitmaps = bitmaps
        self.image_size = (int(image_size[0]), int(image_size[1]))

    @classmethod
    def from_images(cls, images: np.ndarray | torch.Tensor, image_size: tuple[int, int]) -> "CropMasks":
        """Takes (N, H, W) masks apart into crops.

        Raises:
            ValueError: the masks are not of the image's size.
        """
        if len(images) and tuple(images.shape[1:]) != tuple(image_size):
            raise ValueError(f"masks of size {tuple(images.shape[1:])} for an image of size {tuple(image_size)}")
        windows, bitmaps = [], []
        for image in images:
            pixels = np.ascontiguousarray(np.asarray(image), dtype=np.uint8)
            x, y, w, h = cv2.boundingRect(pixels)
            windows.append(Window(x, y, x + w, y + h))
            bitmaps.append(pixels[y : y + h, x : x + w].copy())
        return cls(windows, bitmaps, image_size)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Index) -> "CropMasks":
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return CropMasks([self.windows[i] for i in chosen], [self.bitmaps[i] for i in chosen], self.image_size)

    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """See :meth:`Masks.crop`."""
        return self.windows[index], self.bitmaps[index]


def encode_rle(window: Window, pixels: np.ndarray, image_size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length code of an image that is 0 but for ``pixels`` in ``window``.

    COCO counts runs of 0 and 1 in turn, down the columns of the image one after the other.

    Args:
        pixels: (h, w) uint8 in {0, 1}.
        image_size: (H, W) of the image.

    Returns:
        ``{"size": [H, W], "counts": str}``.
    """
    height, width = image_size
    columns = np.zeros((pixels.shape[1], pixels.shape[0] + 2), dtype=bool)  # one background pixel at either end
    columns[:, 1:-1] = pixels.T
    steps = columns[:, 1:] != columns[:, :-1]  # where a run begins, and just after its end
    column, row = np.divmod(np.flatnonzero(steps), steps.shape[1])  # in turn a beginning and an end, down the columns
    edges = (column + window.x0) * height + row + window.y0
    if len(
        edges
    ):  # a run that ends where the next begins, at the foot of one column and the head of the next, is one run
        joined = edges[1:-1:2] == edges[2::2]
        keep = np.ones(len(edges), dtype=bool)
        keep[1:-1:2][joined] = False
        keep[2::2][joined] = False
        edges = edges[keep]
    counts = np.diff(np.concatenate(([0], edges, [height * width])))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _covered(start: float, end: float, size: int) -> range:
    """The pixels whose centres can lie in [start, end], and one more on each side, within the image."""
    if not (np.isfinite(start) and np.isfinite(end)):
        return range(0)
    return range(min(max(int(start) - 1, 0), size), max(min(int(end) + 2, size), 0))


def _between(pixels: range, start: float, end: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Between which values of a grid with a margin of one each pixel's centre lies; the box is [start, end].

    Returns:
        (pixels,) the lower value's index, in [0, size], and (pixels,) float32 how far beyond it, in [0, 1].
    """
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    position = (centres - np.float32(start)) / np.float32(end - start) * np.float32(size) + np.float32(0.5)
    position = np.clip(position, 0, size + 1)  # the margin is at 0 and size + 1; the first value at 1
    lower = np.minimum(position.astype(np.intp), size)
    return lower, (position - lower).astype(np.float32)
