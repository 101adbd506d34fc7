"""The module with which a model pools its regions; its interface is that of Detectron2's ``ROIPooler``."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.ops.roi_align.levels import assign_levels
from d2_maskrcnn.ops.roi_align.operator import multilevel_roi_align
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes

POOLER_TYPES = {"ROIAlignV2": True, "ROIAlign": False}  # name in configs -> aligned


class ROIPooler(nn.Module):
    """Pool each box from the pyramid level that fits its size, with one call for all levels and images.

    Args:
        output_size: bins of a box along y and x, or one number for both.
        scales: feature cells per input pixel of each level (1 / stride): powers of two, each half of the previous one.
        sampling_ratio: samples along each side of a bin; 0 takes one per cell that the bin covers, rounded up.
        pooler_type: "ROIAlignV2", or "ROIAlign" for the legacy operator.
        canonical_box_size: side in pixels of the square box that belongs to ``canonical_level``.
        canonical_level: level k has stride 2**k (arXiv:1612.03144, equation 1).

    Raises:
        UserError: another type, or strides that are not those of a pyramid.
    """

    def __init__(
        self,
        output_size: int | Sequence[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str = "ROIAlignV2",
        canonical_box_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise UserError(f"POOLER_TYPE {pooler_type}: expected one of {', '.join(POOLER_TYPES)}")
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (height, width)
        self.scales = tuple(scales)
        self.min_level = finest_level(self.scales)
        self.sampling_ratio = sampling_ratio
        self.aligned = POOLER_TYPES[pooler_type]
        self.canonical_box_size = canonical_box_size
        self.canonical_level = canonical_level

    @classmethod
    def from_cfg(
        cls, cfg: CfgNode, head: str, input_shape: dict[str, ShapeSpec], in_features: Sequence[str]
    ) -> "ROIPooler":
        """Build the pooler that ``POOLER_*`` under ``head`` (such as ``MODEL.ROI_BOX_HEAD``) describes.

        Raises:
            UserError: an unsupported value; the message names the key.
        """
        node = functools.reduce(lambda node, key: node[key], head.split("."), cfg)
        strides = [input_shape[name].stride or 0 for name in in_features]
        try:
            return cls(
                node.POOLER_RESOLUTION,
                [1.0 / stride if stride else 0.0 for stride in strides],
                node.POOLER_SAMPLING_RATIO,
                node.POOLER_TYPE,
            )
        except UserError as error:
            raise UserError(
                f"{head}.POOLER_* over MODEL.ROI_HEADS.IN_FEATURES {list(in_features)} (strides {strides}): {error}"
            ) from error

    def forward(self, features: Sequence[torch.Tensor], box_lists: Sequence[Boxes]) -> torch.Tensor:
        """Pool boxes.

        Args:
            features: (N, C, Hi, Wi) of each level.
            box_lists: N boxes of each image, XYXY in pixels of the network input.

        Returns:
            (M, C, height, width) in channels-last memory, image after image.
        """
        return multilevel_roi_align(
            features,
            [boxes.tensor for boxes in box_lists],
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            self.canonical_box_size,
            self.canonical_level - self.min_level,
        )

    def assign_levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the index of the level that each box (M, 4) is pooled from, (M,) int64."""
        return assign_levels(boxes, len(self.scales), self.canonical_box_size, self.canonical_level - self.min_level)

    def extra_repr(self) -> str:
        """Return the settings shown by ``print(model)``."""
        names = ("output_size", "scales", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def finest_level(scales: Sequence[float]) -> int:
    """Return the level k whose stride 2**k is that of the first scale.

    Raises:
        UserError: the scales are not powers of two, each half of the previous one.
    """
    levels = [-math.log2(scale) if scale > 0 else math.nan for scale in scales]
    if not levels or math.isnan(levels[0]) or levels != [round(levels[0]) + i for i in range(len(levels))]:
        raise UserError(f"scales {tuple(scales)}: expected powers of two, each half of the previous one")
    return round(levels[0])
