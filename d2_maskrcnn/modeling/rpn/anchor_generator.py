"""Anchors: reference boxes of fixed sizes and shapes at every position of every feature level (arXiv:1506.01497,
section 3.1).
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY
from detectron2.structures import Boxes

_CACHED_SIZES = 4


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> torch.Tensor:
    """Anchors centred on the origin: (len(sizes) * len(aspect_ratios), 4) XYXY, ratios varying fastest.

    An anchor of size s and ratio r has the area s * s and r times as much height as width.

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
    """Anchors of every level for a list of feature maps, in the network's frame.

    Those of the latest few feature-map sizes are kept: images of one size, or a few, cost nothing.
    """

    box_dim = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        """Builds the cell anchors.

        Args:
            sizes: for each level the square roots of the anchors' areas, in pixels; one list serves all levels.
            aspect_ratios: for each level height / width; one list serves all levels.
            strides: pixels from one position to the next, for each level.
            offset: shift of the first anchor's centre, as a fraction of the stride, in [0, 1).

        Raises:
            UserError: the numbers of levels disagree, or the offset is out of range.
        """
        super().__init__()
        if not 0.0 <= offset < 1.0:
            raise UserError(f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}: expected 0 <= offset < 1")
        self.strides = tuple(strides)
        self.offset = offset
        sizes = self._for_each_level(sizes, "SIZES")
        aspect_ratios = self._for_each_level(aspect_ratios, "ASPECT_RATIOS")
        # Not buffers: they belong to the config, not to the weights.
        self._cells = [cell_anchors(s, r) for s, r in zip(sizes, aspect_ratios, strict=True)]
        self._cache: OrderedDict[tuple, list[Boxes]] = OrderedDict()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Reads ``cfg.MODEL.ANCHOR_GENERATOR``; ``input_shape`` gives each level's stride."""
        node = cfg.MODEL.ANCHOR_GENERATOR
        return {
            "sizes": node.SIZES,
            "aspect_ratios": node.ASPECT_RATIOS,
            "strides": [shape.stride for shape in input_shape],
            "offset": node.OFFSET,
        }

    @property
    def num_anchors(self) -> list[int]:
        """Anchors at each position, for each level."""
        return [len(cells) for cells in self._cells]

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        """Args: features: for each level (N, C, Hi, Wi).

        Returns:
            for each level Boxes (Hi*Wi*A, 4), float32, row by row, at each position in the order of
            :func:`cell_anchors`.
            They are shared between calls: don't change them in place.
        """
        key = (features[0].device, *(tuple(feature.shape[-2:]) for feature in features))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        with torch.inference_mode(False):  # what is kept must be usable in training as well
            anchors = [self._level(i, feature) for i, feature in enumerate(features)]
        self._cache[key] = anchors
        if len(self._cache) > _CACHED_SIZES:
            self._cache.popitem(last=False)
        return anchors

    def _level(self, index: int, feature: torch.Tensor) -> Boxes:
        stride, device = self.strides[index], feature.device
        height, width = feature.shape[-2:]
        start = self.offset * stride
        xs = torch.arange(start, width * stride, step=stride, dtype=torch.float32, device=device)
        ys = torch.arange(start, height * stride, step=stride, dtype=torch.float32, device=device)
        y, x = torch.meshgrid(ys, xs, indexing="ij")  # each (Hi, Wi)
        centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        return Boxes((centres + self._cells[index].to(device)).reshape(-1, 4))

    def _for_each_level(self, values: Sequence[Sequence[float]], key: str) -> list[Sequence[float]]:
        levels = len(self.strides)
        if len(values) not in (1, levels) or any(len(level) == 0 for level in values):
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {levels} feature levels: expected one "
                "non-empty list, or one for each level"
            )
        return [values[0]] * levels if len(values) == 1 else list(values)
