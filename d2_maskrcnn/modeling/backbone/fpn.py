"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144, section 3) on a ResNet."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from d2_maskrcnn.config.validation import require, require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.backbone.resnet import ResNet, build_resnet
from d2_maskrcnn.modeling.backbone.stage import has_forward_hooks
from d2_maskrcnn.ops.tracing import is_recorded
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

FUSE_TYPES = ("sum", "avg")
BAND_ROWS = 8  # coarser rows at a time, of a fusion in place


class LastLevelMaxPool(nn.Module):
    """Subsample the level ``in_feature`` by 2, for one more level (section 4.1: ``p6`` above ``p5``)."""

    num_levels = 1

    def __init__(self, in_feature: str = "p5") -> None:
        super().__init__()
        self.in_feature = in_feature

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, C, H, W) to a list of one tensor (N, C, H/2, W/2)."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class LastLevelP6P7(nn.Module):
    """Compute two more levels from ``in_feature`` by 3x3 convolutions of stride 2 (arXiv:1708.02002, section 4)."""

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, in_feature: str = "res5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for layer in (self.p6, self.p7):
            c2_xavier_fill(layer)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, in, H, W) to (N, out, H/2, W/2) and (N, out, H/4, W/4)."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class FPN(Backbone):
    """Combine bottom-up features top-down by lateral 1x1 and output 3x3 convolutions.

    The output has a level ``p{l}`` of stride 2**l per bottom-up feature, and those of ``top_block``.

    Args:
        bottom_up: maps images to features. in_features: names of the features to use, finest first.
        out_channels: of every level. norm: of the lateral and output convolutions.
        top_block: maps the feature or level ``top_block.in_feature`` to a list of ``top_block.num_levels`` levels above
            the coarsest one; None for none.
        fuse_type: ``sum`` or ``avg`` of lateral and top-down features.

    Raises:
        UserError: the strides of ``in_features`` do not double from one to the next, or another ``fuse_type``.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        if fuse_type not in FUSE_TYPES:
            raise UserError(f"the fuse_type of the FPN is {fuse_type!r}: expected one of {', '.join(FUSE_TYPES)}")
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride or 0 for name in in_features]
        _check_strides(in_features, strides)
        self.levels = tuple(int(math.log2(stride)) for stride in strides)
        for level, name in zip(self.levels, in_features, strict=True):
            lateral = ConvNorm(channels_of(shapes[name]), out_channels, 1, norm=norm)
            output = ConvNorm(out_channels, out_channels, 3, norm=norm)
            for part, conv in (("lateral", lateral), ("output", output)):
                c2_xavier_fill(conv)
                self.add_module(f"fpn_{part}{level}", conv)
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.top_block: Any = top_block
        self.fuse_type = fuse_type
        above = range(self.levels[-1] + 1, self.levels[-1] + 1 + getattr(top_block, "num_levels", 0))
        self._out_feature_strides = {f"p{level}": 2**level for level in (*self.levels, *above)}
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Number that divides the input's height and width, so that each level is exactly twice the next one's size."""
        return 2 ** self.levels[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each level that ``forward`` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to a dict: ``p{l}`` -> (N, out_channels, H / 2**l, W / 2**l)."""
        bottom_up = dict(self.bottom_up(x))
        top_input = bottom_up.get(self.top_block.in_feature) if self.top_block is not None else None
        outputs: dict[str, torch.Tensor] = {}
        top_down: torch.Tensor | None = None
        for level, name in zip(reversed(self.levels), reversed(self.in_features), strict=True):
            lateral: Any = self.get_submodule(f"fpn_lateral{level}")
            feature = bottom_up.pop(name)
            in_place = feature.device.type == "cpu" and self._can_overwrite(name, lateral)  # bands are slow on a GPU
            if top_down is not None and in_place:
                top_down = self._fuse_in_place(lateral, feature, top_down)
            else:
                top_down = self._fuse(lateral(feature), top_down)
            del feature  # frees the memory before the output convolution
            outputs[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(top_down)
        features = {f"p{level}": outputs[f"p{level}"] for level in self.levels}
        if self.top_block is not None:
            added = self.top_block(features[self.top_block.in_feature] if top_input is None else top_input)
            features.update(zip(self._out_features[len(self.levels) :], added, strict=True))
        return features

    def _fuse(self, lateral: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        if coarser is None:
            return lateral
        if torch.is_grad_enabled():
            lateral = F.interpolate(coarser, scale_factor=2.0, mode="nearest").add_(lateral)
        else:
            # The same in one pass, by broadcasting over the 2 x 2 cells under each coarser cell; its gradient is slow.
            cells = _cells(lateral)
            cells += coarser[:, :, :, None, :, None]
        return lateral / 2 if self.fuse_type == "avg" else lateral

    def _can_overwrite(self, name: str, lateral: ConvNorm) -> bool:
        """Return whether the result of a lateral convolution may be stored in its input, which nothing else reads."""
        if torch.is_grad_enabled() or is_recorded():
            return False
        if type(self.bottom_up) is not ResNet or name == getattr(self.top_block, "in_feature", None):
            return False
        return lateral.maps_pixels_in_place() and not any(map(has_forward_hooks, (self.bottom_up, lateral)))

    def _fuse_in_place(self, conv: ConvNorm, x: torch.Tensor, coarser: torch.Tensor) -> torch.Tensor:
        """Store ``_fuse(conv(x), coarser)`` in ``x``, in bands of rows whose values stay in the processor's caches."""
        for image in range(len(x)):
            for row in range(0, coarser.shape[2], BAND_ROWS):
                rows = slice(2 * row, 2 * (row + BAND_ROWS))
                band = x[image : image + 1, :, rows]
                added = coarser[image : image + 1, :, row : row + BAND_ROWS, None, :, None]
                torch.add(_cells(conv(band)), added, out=_cells(band))
        return x.div_(2) if self.fuse_type == "avg" else x


def _cells(x: torch.Tensor) -> torch.Tensor:
    """View (N, C, 2h, 2w) as the 2 x 2 cells under each coarser cell: (N, C, h, 2, w, 2)."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))


def _check_strides(names: Sequence[str], strides: list[int]) -> None:
    if 0 in strides or not strides or any(b != 2 * a for a, b in itertools.pairwise(strides)):
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {list(names)} with strides {strides}: expected one or more features, each with "
            "twice the stride of the one before"
        )


@BACKBONE_REGISTRY.register()
def build_maskrcnn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the ResNet-FPN of ``cfg.MODEL.RESNETS``, ``BACKBONE`` and ``FPN``.

    Raises:
        UserError: a value is not supported, or ``FPN.IN_FEATURES`` is not part of ``RESNETS.OUT_FEATURES``.
    """
    fuse_type = require(cfg, "MODEL.FPN.FUSE_TYPE", FUSE_TYPES)
    bottom_up = build_resnet(cfg, input_shape)
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in bottom_up.output_shape()]
    if missing:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES contains {missing}, which MODEL.RESNETS.OUT_FEATURES does not: expected names "
            f"out of {list(cfg.MODEL.RESNETS.OUT_FEATURES)}"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    norm = require_norm(cfg, "MODEL.FPN.NORM", channels)
    coarsest = bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride or 1
    top_block = LastLevelMaxPool(f"p{int(math.log2(coarsest))}")
    return FPN(bottom_up, cfg.MODEL.FPN.IN_FEATURES, channels, norm, top_block, fuse_type)
