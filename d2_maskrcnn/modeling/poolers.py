"""Features of regions, each pooled from the pyramid level that fits its size (arXiv:1612.03144, section 4.2)."""

import itertools
import math

import torch
from torch import nn
from torchvision.ops import roi_align

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.precision import at_least_float32
from d2_maskrcnn.modeling.shapes import stride_of
from d2_maskrcnn.modeling.unsupported import config_value, require
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes

POOLER_TYPES = ("ROIAlignV2", "ROIAlign")
# A box of 224 x 224 pixels, ImageNet's picture size, is pooled from level 4 (stride 16).
CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4


class MultiLevelROIPooler(nn.Module):
    """ROIAlign (arXiv:1703.06870, section 3) over several feature levels."""

    def __init__(self, output_size: int, strides: list[int], sampling_ratio: int = 0, aligned: bool = True) -> None:
        """Args:
            output_size: bins along each side.
            strides: of the feature levels, finest first, each twice the one before.
            sampling_ratio: samples along each side of a bin; 0 takes one for each feature cell that the bin covers,
                rounded up.
            aligned: shifts the boxes by half a pixel so that a feature's centre is where it should be (ROIAlignV2).
        """  # fmt: skip
        super().__init__()
        self.output_size = output_size
        self.strides = tuple(strides)
        self.min_level = int(math.log2(strides[0]))
        self.max_level = self.min_level + len(strides) - 1
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    @classmethod
    def from_cfg(
        cls, cfg: CfgNode, head: str, input_shape: dict[str, ShapeSpec], in_features: list[str]
    ) -> "MultiLevelROIPooler":
        """The pooler that ``POOLER_*`` under ``head`` (say ``MODEL.ROI_BOX_HEAD``) describes."""
        strides = [stride_of(input_shape[name]) for name in in_features]
        if any(b != 2 * a for a, b in itertools.pairwise(strides)) or math.log2(strides[0]) % 1:
            raise UserError(
                f"MODEL.ROI_HEADS.IN_FEATURES {in_features} have the strides {strides}: expected powers of two, each "
                "twice the one before"
            )
        return cls(
            output_size=config_value(cfg, f"{head}.POOLER_RESOLUTION"),
            strides=strides,
            sampling_ratio=config_value(cfg, f"{head}.POOLER_SAMPLING_RATIO"),
            aligned=require(cfg, f"{head}.POOLER_TYPE", POOLER_TYPES) == "ROIAlignV2",
        )

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: features: for each level (N, C, Hi, Wi). boxes: for each picture, in the network's frame.

        Returns:
            pooled: (M, C, P, P), the pictures' boxes one after the other. levels: (M,) index of the level of each.
        """
        rois = to_rois(boxes)
        levels = self.assign_levels(rois[:, 1:])
        if len(features) == 1:
            return self._pool(features[0], rois, self.strides[0]), levels
        size = self.output_size
        pooled = features[0].new_empty((len(rois), features[0].shape[1], size, size))
        for index, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            chosen = (levels == index).nonzero().flatten()
            pooled.index_copy_(0, chosen, self._pool(feature, rois[chosen], stride))
        return pooled, levels

    def assign_levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Index (M,) of the level of each box (M, 4): k = 4 + log2(sqrt(w*h) / 224), rounded down, within the levels
        there are.
        """
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = (
            CANONICAL_LEVEL + torch.log2(sides / CANONICAL_SIZE + 1e-8)
        ).floor()  # 1e-8: a box of no area has a level too
        return level.clamp(self.min_level, self.max_level).to(torch.int64) - self.min_level

    def _pool(self, feature: torch.Tensor, rois: torch.Tensor, stride: int) -> torch.Tensor:
        # In float32 whatever the features are: half precision cannot hold a coordinate of a big picture.
        wide = at_least_float32(feature)
        pooled = roi_align(
            wide, rois.to(wide.dtype), self.output_size, 1.0 / stride, self.sampling_ratio, aligned=self.aligned
        )
        return pooled.to(feature.dtype)


def to_rois(boxes: list[Boxes]) -> torch.Tensor:
    """(M, 5): index of the picture, then XYXY."""
    tensors = [item.tensor for item in boxes]
    if not tensors:
        return torch.zeros((0, 5))
    pictures = [
        torch.full((len(item), 1), index, dtype=item.dtype, device=item.device) for index, item in enumerate(tensors)
    ]
    return torch.cat([torch.cat(pictures), torch.cat(tensors)], dim=1)


def channels_first(feature: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in NCHW order in memory; ``feature`` itself where it already is."""
    if feature.is_contiguous() or torch.is_grad_enabled() or feature.device.type != "cpu":
        return feature.contiguous()
    # PyTorch's copy from NHWC is several times slower on CPUs than its transposition of a matrix, which this is.
    result = torch.empty(feature.shape, dtype=feature.dtype)
    for target, source in zip(result.flatten(2), feature.flatten(2), strict=True):  # each (C, H*W)
        target.copy_(source)
    return result
