"""A batch of images of different sizes in one padded tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from detectron2._errors import InvalidArgumentError


class ImageList:
    """Batch of N images that are padded at the right and bottom to a common size.

    Attributes:
        tensor: (N, C, H, W), or (N, H, W) for images without channels, padding included.
        image_sizes: the (height, width) of each image without its padding, in pixels.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """Return one image without its padding, (C, h, w) or (h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        """Return the images after ``tensor.to(...)``."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        """The device of the tensor."""
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to a common size and stack them; the result shares no memory with the input.

        Args:
            tensors: each (C, h, w) or (h, w), with the same C.
            size_divisibility: if above 1, height and width are rounded up to a multiple of it.
            pad_value: value of the padding.
            padding_constraints: may have ``"size_divisibility"``, which overrides that argument, and ``"square_size"``:
                if above 0, height and width become this (then rounded up as above).

        Raises:
            ValueError: there is no image, the channels differ, or an image is larger than ``square_size``.
        """
        _check_images(tensors)
        image_sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        constraints = padding_constraints or {}
        divisibility = constraints.get("size_divisibility", size_divisibility)
        height, width = _padded_size(image_sizes, divisibility, constraints.get("square_size", 0))
        padded = [F.pad(t, (0, width - t.shape[-1], 0, height - t.shape[-2]), value=pad_value) for t in tensors]
        return ImageList(torch.stack(padded).contiguous(), image_sizes)


def _check_images(tensors: Sequence[torch.Tensor]) -> None:
    if isinstance(tensors, torch.Tensor) or len(tensors) == 0:
        raise InvalidArgumentError("ImageList.from_tensors needs a list of at least one image")
    for t in tensors:
        if t.dim() not in (2, 3) or t.shape[:-2] != tensors[0].shape[:-2]:
            shapes = [tuple(t.shape) for t in tensors]
            raise InvalidArgumentError(
                f"Images must be (C, H, W) with equal numbers of channels, or (H, W), got {shapes}"
            )


def _padded_size(image_sizes: list[tuple[int, int]], divisibility: int, square_size: int) -> tuple[int, int]:
    largest = [max(size[axis] for size in image_sizes) for axis in (0, 1)]
    if square_size > 0:
        if max(largest) > square_size:
            raise InvalidArgumentError(
                f"An image of (height, width) up to {tuple(largest)} does not fit square_size {square_size}"
            )
        largest = [square_size, square_size]
    if divisibility > 1:
        largest = [-(-side // divisibility) * divisibility for side in largest]
    return largest[0], largest[1]
