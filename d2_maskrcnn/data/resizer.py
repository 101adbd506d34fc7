"""Resize images for the model."""

import numpy as np

from d2_maskrcnn.data.raw_images import apply_resize, raw_channels
from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode
from detectron2.data import transforms as T


class Resizer:
    """Resize images for the model, as evaluation does.

    Args:
        cfg: ``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST`` and ``INPUT.FORMAT`` are used.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._shortest, self._longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._resize = T.ResizeShortestEdge([self._shortest, self._shortest], self._longest)
        self._flip = cfg.INPUT.FORMAT == "RGB"
        self.raw_channels = raw_channels(cfg)

    def __call__(self, image: np.ndarray | WindowedImage) -> np.ndarray:
        """Convert (H, W, 3) uint8 BGR to (3, H', W') uint8 in the model's channel order.

        With ``INPUT.FORMAT`` ``RAW`` both are float32 of the model's channels.
        """
        if isinstance(image, WindowedImage):
            if not self._shortest:
                raise UserError(f"{image.name}: INPUT.MIN_SIZE_TEST 0 would not scale it down as a whole; set a size.")
            resized = image.resized(*self._output_size(image.shape[:2]))
        else:
            resized = apply_resize(self._resize.get_transform(image), image)
        return np.ascontiguousarray((resized[:, :, ::-1] if self._flip else resized).transpose(2, 0, 1))

    def pixels(self, size: tuple[int, int]) -> int:
        """Return the number of pixels that an image of (H, W) is resized to."""
        height, width = self._output_size(size)
        return height * width

    def _output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        if not self._shortest:
            return size
        height, width = T.ResizeShortestEdge.get_output_shape(*size, self._shortest, self._longest)
        return max(height, 1), max(width, 1)
