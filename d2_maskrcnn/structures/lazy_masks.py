"""Instance masks stored as small grids or crops, from which whole images are made only when they are read.

A hundred masks of a 3840x2160 image take 0.8 GB as (N, H, W) bool and 0.3 MB as the 28x28 probabilities that they are
pasted from. The coordinate frame is that of :mod:`d2_maskrcnn.structures.masks`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy

import cv2
import numpy as np
import torch

from d2_maskrcnn.structures.mask_pasting import MASK_THRESHOLD, paste_crop, pasted_window
from d2_maskrcnn.structures.masks import Rle, encode_rle_parts, mask_to_polygons
from d2_maskrcnn.structures.windows import Crop, Window

PART_PIXELS = 2**24  # of a mask's probabilities, pasted at a time: 64 MB

Index = int | slice | Sequence[int] | np.ndarray


class Masks(ABC):
    """N masks of one image.

    Attributes:
        image_size: (H, W) of the image.
    """

    image_size: tuple[int, int]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: Index) -> "Masks":
        """Select masks by an integer (giving a batch of one), a slice, an index array or a bool array."""

    @abstractmethod
    def crop(self, index: int) -> Crop:
        """Return a window that contains mask ``index``, and its pixels there: (h, w) uint8 in {0, 1}.

        Both are empty where the mask has no pixels in the image.
        """

    def parts(self, index: int) -> Iterator[Crop]:
        """Yield mask ``index`` in parts from left to right, for masks that would take much memory as one crop."""
        yield self.crop(index)

    def resized(self, height: int, width: int) -> "Masks":
        """Return the masks in an image of another size, sampled at the centers of its pixels."""
        scale = (self.image_size[0] / height, self.image_size[1] / width)
        crops = [_sampled(self.crop(index), *scale) for index in range(len(self))]
        return CropMasks([window for window, _ in crops], [pixels for _, pixels in crops], (height, width))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Iterate over the masks as (H, W) bool images, of which one at a time is in memory."""
        for index in range(len(self)):
            yield self.image(index)

    def image(self, index: int) -> np.ndarray:
        """Return mask ``index`` as (H, W) bool."""
        window, pixels = self.crop(index)
        image = np.zeros(self.image_size, dtype=bool)
        image[window.slices] = pixels
        return image

    def rle(self, index: int) -> Rle:
        """Return mask ``index`` as compressed RLE; see :func:`~d2_maskrcnn.structures.masks.encode_rle`."""
        return encode_rle_parts(self.parts(index), self.image_size)

    def rles(self) -> list[Rle]:
        """Return all masks as compressed RLEs."""
        return [self.rle(index) for index in range(len(self))]

    def polygons(self, index: int, tolerance: float = 0.0) -> list[np.ndarray]:
        """Return the contours of mask ``index``; see :func:`~d2_maskrcnn.structures.masks.mask_to_polygons`."""
        window, pixels = self.crop(index)
        return mask_to_polygons(pixels, (window.x0, window.y0), tolerance)

    def areas(self) -> np.ndarray:
        """Return the number of pixels of each mask, (N,) int64."""
        return np.array([np.count_nonzero(self.crop(i)[1]) for i in range(len(self))], dtype=np.int64)


class BoxMasks(Masks):
    """Masks as a mask head predicts them: probabilities on an S x S grid over each box (arXiv:1703.06870, section 3).

    Args:
        boxes: (N, 4) float, XYXY; boxes may leave the image.
        probabilities: (N, S, S) float in [0, 1].
        image_size: (H, W) of the image.
        threshold: probability at or above which a pixel belongs to the mask, in (0, 1].

    Raises:
        ValueError: the shapes do not match.
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
                f"expected (N, 4) boxes and (N, S, S) probabilities, got {boxes.shape} and {probabilities.shape}"
            )
        self.boxes = np.asarray(boxes, dtype=np.float32)
        self.probabilities = np.asarray(probabilities, dtype=np.float32)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Index) -> "BoxMasks":
        index = [index] if isinstance(index, (int, np.integer)) else index
        return BoxMasks(self.boxes[index], self.probabilities[index], self.image_size, self.threshold)

    def crop(self, index: int) -> Crop:
        """See :meth:`Masks.crop`; the window is one pixel larger than the box on each side."""
        window, values = self.probability_crop(index)
        return window, (values >= self.threshold).view(np.uint8)  # (h, w)

    def parts(self, index: int) -> Iterator[Crop]:
        """See :meth:`Masks.parts`."""
        window = pasted_window(self.boxes[index], *self.image_size)
        step = max(1, PART_PIXELS // max(window.y1 - window.y0, 1))
        for x0 in range(window.x0, window.x1, step):
            part = Window(x0, window.y0, min(x0 + step, window.x1), window.y1)
            _, values = paste_crop(self.probabilities[index], self.boxes[index], *self.image_size, part)
            yield part, (values >= self.threshold).view(np.uint8)

    def probability_crop(self, index: int) -> Crop:
        """Return the window of mask ``index`` and its probabilities there before thresholding, (h, w) float32."""
        return paste_crop(self.probabilities[index], self.boxes[index], *self.image_size)

    def resized(self, height: int, width: int) -> "BoxMasks":
        """Return the masks in an image of another size, as the mask head would have predicted them there."""
        scale = np.array([width / self.image_size[1], height / self.image_size[0]] * 2, dtype=np.float32)
        return BoxMasks(self.boxes * scale, self.probabilities, (height, width), self.threshold)


class CropMasks(Masks):
    """Masks as bitmaps of their tight boxes, for masks that were given as whole images.

    Args:
        windows: the position of each bitmap.
        bitmaps: (h, w) uint8 in {0, 1}, one per window.
        image_size: (H, W) of the image.
    """

    def __init__(self, windows: list[Window], bitmaps: list[np.ndarray], image_size: tuple[int, int]) -> None:
        self.windows = windows
        self.bitmaps = bitmaps
        self.image_size = (int(image_size[0]), int(image_size[1]))

    @classmethod
    def from_images(cls, images: np.ndarray | torch.Tensor, image_size: tuple[int, int]) -> "CropMasks":
        """Crop (N, H, W) masks to their tight boxes.

        Raises:
            ValueError: the masks are not of size ``image_size``.
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

    def crop(self, index: int) -> Crop:
        """See :meth:`Masks.crop`; the window is the mask's tight box."""
        return self.windows[index], self.bitmaps[index]


class MaskSequence(Masks):
    """Masks of one image that are stored in different ways, one after the other.

    Args:
        parts: the masks, all of the same image size; at least one.
    """

    def __init__(self, parts: Sequence[Masks]) -> None:
        self.image_size = parts[0].image_size
        self._index = [(part, number) for part in parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Index) -> "MaskSequence":
        chosen = copy(self)
        chosen._index = [self._index[i] for i in np.atleast_1d(np.arange(len(self))[index])]
        return chosen

    def crop(self, index: int) -> Crop:
        """See :meth:`Masks.crop`."""
        part, number = self._index[index]
        return part.crop(number)

    def parts(self, index: int) -> Iterator[Crop]:
        """See :meth:`Masks.parts`."""
        group, number = self._index[index]
        return group.parts(number)

    def resized(self, height: int, width: int) -> Masks:
        """See :meth:`Masks.resized`."""
        resized = [group[number].resized(height, width) for group, number in self._index]
        return MaskSequence(resized) if resized else CropMasks([], [], (height, width))


def _sampled(crop: Crop, step_y: float, step_x: float) -> Crop:
    """Sample a mask at the pixel centers of an image that is scaled down by two factors."""
    window, pixels = crop
    ranges = []
    for start, end, step in ((window.y0, window.y1, step_y), (window.x0, window.x1, step_x)):
        first, last = math.ceil(start / step - 0.5), math.ceil(end / step - 0.5)
        places = np.floor((np.arange(first, last) + 0.5) * step).astype(np.int64) - start
        ranges.append((first, last, np.clip(places, 0, end - start - 1)))
    (y0, y1, rows), (x0, x1, columns) = ranges
    return Window(x0, y0, x1, y1), pixels[np.ix_(rows, columns)]
