"""Anchors: boxes of fixed sizes and aspect ratios at every position of every level (arXiv:1506.01497, section 3.1)."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.structures import Boxes

_MAX_CACHED = 4


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> torch.Tensor:
    """Compute the anchors of one position, centered on the origin.

    An anchor of size s and aspect ratio r has the area s * s, and its height is r times its width.

    Returns:
        (len(sizes) * len(aspect_ratios), 4) XYXY, the aspect ratio varying fastest.

    >>> cell_anchors([32], [1.0]).tolist()
    [[-16.0, -16.0, 16.0, 16.0]]
    """
    boxes = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2.0 / ratio)
            height = ratio * width
            boxes.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
    return torch.tensor(boxes)


@ANCHOR_GENERATOR_REGISTRY.register()
class MaskRCNNAnchorGenerator(nn.Module):
    """Generate the anchors of all feature levels, XYXY in pixels of the network's input image.

    The anchors of the last few input sizes are cached.

    Args:
        sizes: per level the square roots of the anchors' areas, in pixels; a single list, nested or not, serves all
            levels.
        aspect_ratios: per level height / width, in the same form.
        strides: per level the pixels from one position to the next.
        offset: shift of the first anchor's center, as a fraction of the stride, in [0, 1).

    Raises:
        UserError: the number of lists does not fit the levels, or the offset is out of range.
    """

    box_dim = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Any],
        aspect_ratios: Sequence[Any],
        strides: Sequence[int],
        offset: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise UserError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}: expected 0 <= offset < 1")
        self.strides = tuple(strides)
        self.offset = offset
        sizes = self._per_level(sizes, "SIZES")
        aspect_ratios = self._per_level(aspect_ratios, "ASPECT_RATIOS")
        # Not buffers: the config defines them, not the weights.
        self._cells = [cell_anchors(s, r) for s, r in zip(sizes, aspect_ratios, strict=True)]
        self._cache: OrderedDict[tuple, list[Boxes]] = OrderedDict()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read ``cfg.MODEL.ANCHOR_GENERATOR``, and the strides from ``input_shape``."""
        node = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": node.SIZES,
            "aspect_ratios": node.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": node.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors per position, of each level."""
        return [len(cells) for cells in self._cells]

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """Return the anchors of the feature levels (N, C, Hi, Wi).

        Returns:
            per level Boxes (Hi*Wi*A, 4), float32, row by row, per position in the order of :func:`cell_anchors`. Do
            not change them in place: later calls return the same objects.
        """
        key = (features[0].device, *(tuple(feature.shape[-2:]) for feature in features))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with torch.inference_mode(False):  # the cache must be usable in training, too
            anchors = [self._level(i, feature) for i, feature in enumerate(features)]
        self._cache[key] = anchors
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)
        return anchors

    def _level(self, index: int, feature: torch.Tensor) -> Boxes:
        stride, device = self.strides[index], feature.device
        height, width = feature.shape[-2:]
        start = self.offset * stride
        xs, ys = (start + stride * torch.arange(n, dtype=torch.float32, device=device) for n in (width, height))
        y, x = torch.meshgrid(ys, xs, indexing="ij")  # each (Hi, Wi)
        centers = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        return Boxes((centers + self._cells[index].to(device)).reshape(-1, 4))

    def _per_level(self, values: Sequence[Any], key: str) -> list[Sequence[float]]:
        levels = len(self.strides)
        if values and isinstance(values[0], (int, float)):
            values = [values]
        if len(values) not in (1, levels) or any(len(level) == 0 for level in values):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {levels} feature levels: expected a single "
                "list or one per level, each with one or more values"
            )
        return [values[0]] * levels if len(values) == 1 else list(values)
