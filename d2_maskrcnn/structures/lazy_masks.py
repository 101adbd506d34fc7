"""Instance masks stored as small grids or crops, from which whole images are made only when they are read.

A hundred masks of a 3840x2160 image take 0.8 GB as (N, H, W) bool and 0.3 MB as the 28x28 probabilities that they are
pasted from. The coordinate frame is that of :mod:`d2_maskrcnn.structures.masks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import cv2
import numpy as np
import torch

from d2_maskrcnn.structures.masks import (
    MASK_THRESHOLD,
    Rle,
    Window,
    encode_rle,
    mask_to_polygons,
    paste_crop,
    paste_masks,
)
from detectron2.structures import Instances

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
    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """Return a window that contains mask ``index``, and its pixels there: (h, w) uint8 in {0, 1}.

        Both are empty where the mask has no pixels in the image.
        """

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
        window, pixels = self.crop(index)
        return encode_rle(pixels, window, self.image_size)

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
        index = [index] if isinstance(index, int) else index
        return BoxMasks(self.boxes[index], self.probabilities[index], self.image_size, self.threshold)

    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """See :meth:`Masks.crop`; the window is one pixel larger than the box on each side."""
        window, values = self.probability_crop(index)
        return window, (values >= self.threshold).view(np.uint8)  # (h, w)

    def probability_crop(self, index: int) -> tuple[Window, np.ndarray]:
        """Return the window of mask ``index`` and its probabilities there before thresholding, (h, w) float32."""
        return paste_crop(self.probabilities[index], self.boxes[index], *self.image_size)

    def resized(self, height: int, width: int) -> "BoxMasks":
        """Return the same masks in an image of another size."""
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

    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """See :meth:`Masks.crop`; the window is the mask's tight box."""
        return self.windows[index], self.bitmaps[index]


class MaskSequence(Masks):
    """Masks of one image that are stored in different ways, one after the other.

    Args:
        parts: the masks, all of the same image size; at least one.
    """

    def __init__(self, parts: Sequence[Masks]) -> None:
        self.parts = list(parts)
        self.image_size = self.parts[0].image_size
        self._index = [(part, number) for part in self.parts for number in range(len(part))]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: Index) -> "MaskSequence":
        chosen = copy(self)
        chosen._index = [self._index[i] for i in np.atleast_1d(np.arange(len(self))[index])]
        return chosen

    def crop(self, index: int) -> tuple[Window, np.ndarray]:
        """See :meth:`Masks.crop`."""
        part, number = self._index[index]
        return part.crop(number)


class MaskInstances(Instances):
    """Instances with the additional fields ``pred_masks`` and ``pred_masks_rle``, computed when they are read.

    ``pred_masks`` is what Detectron2's users expect: (N, H, W) bool on the model's device; it is cached. The evaluator
    of the embedded engine reads ``pred_masks_rle``, compressed RLEs, and drawing reads :attr:`box_masks`; neither makes
    whole images.
    """

    _small: tuple[torch.Tensor, torch.Tensor] | None = None  # (N, 4) XYXY boxes, (N, S, S) probabilities in them
    _threshold: float = MASK_THRESHOLD

    @classmethod
    def from_probabilities(
        cls, instances: Instances, probabilities: torch.Tensor, threshold: float = MASK_THRESHOLD
    ) -> "MaskInstances":
        """Return ``instances`` with masks.

        Args:
            instances: with ``pred_boxes`` in the frame of the output image, without ``pred_masks``.
            probabilities: (N, S, S) in [0, 1], inside the boxes.
            threshold: probability at or above which a pixel belongs to a mask, in (0, 1].
        """
        return cls._wrap(instances, (instances.pred_boxes.tensor, probabilities), threshold)

    @classmethod
    def _wrap(
        cls, instances: Instances, small: tuple[torch.Tensor, torch.Tensor] | None, threshold: float
    ) -> "MaskInstances":
        result = cls(instances.image_size)
        result._fields = dict(instances.get_fields())
        result._small, result._threshold = small, threshold
        return result

    @property
    def box_masks(self) -> BoxMasks | None:
        """The masks as probabilities inside their boxes, on the CPU; None if ``pred_masks`` was set."""
        if self._small is None:
            return None
        boxes, probabilities = (tensor.detach().float().cpu().numpy() for tensor in self._small)
        return BoxMasks(boxes, probabilities, self.image_size, self._threshold)

    def has(self, name: str) -> bool:
        """Return whether there is a field of this name."""
        return super().has(name) or (name in ("pred_masks", "pred_masks_rle") and self._small is not None)

    def get(self, name: str) -> Any:
        """Return the field of this name.

        Raises:
            KeyError: there is no such field.
        """
        self._paste(name)
        masks = self.box_masks if name == "pred_masks_rle" else None
        return super().get(name) if masks is None else masks.rles()

    def __getattr__(self, name: str) -> Any:
        if name in ("pred_masks", "pred_masks_rle") and self.has(name):
            return self.get(name)
        return super().__getattr__(name)

    def get_fields(self) -> dict[str, Any]:
        """Return the fields by name, including ``pred_masks``. Changes of this dict change the instances."""
        self._paste("pred_masks")
        return super().get_fields()

    def set(self, name: str, value: Any) -> None:
        """Add a field or replace it."""
        if name == "pred_masks":
            self._small = None
        super().set(name, value)

    def remove(self, name: str) -> None:
        """Remove a field.

        Raises:
            KeyError: there is no such field.
        """
        if name == "pred_masks" and self._small is not None:
            self._small = None
            self._fields.pop(name, None)
            return
        super().remove(name)

    def to(self, *args: Any, **kwargs: Any) -> "MaskInstances":
        """Return new instances with each field's ``.to(...)``; masks are not pasted."""
        small = self._small
        moved = None if small is None else (small[0].to(*args, **kwargs), small[1].to(*args, **kwargs))
        return self._wrap(super().to(*args, **kwargs), moved, self._threshold)

    def __getitem__(self, item: Any) -> "MaskInstances":
        """Index every field; an integer gives one instance."""
        selected = super().__getitem__(item)
        small = self._small
        if small is not None:
            part = slice(item, item + 1 or None) if isinstance(item, int) else item
            small = (small[0][part], small[1][part])
        return self._wrap(selected, small, self._threshold)

    def _paste(self, name: str) -> None:
        """Paste the masks if ``name`` is their field and they have not been pasted yet."""
        if name == "pred_masks" and self._small is not None and name not in self._fields:
            boxes, probabilities = self._small
            self._fields[name] = paste_masks(probabilities, boxes, *self.image_size, self._threshold)
