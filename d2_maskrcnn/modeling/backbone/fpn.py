"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144, section 3) on a ResNet."""

import itertools
import math

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_xavier_fill

from d2_maskrcnn.config.validation import require, require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.backbone.resnet import build_resnet
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone


class FPN(Backbone):
    """Combine bottom-up features top-down by lateral 1x1 and output 3x3 convolutions.

    The output has a level ``p{l}`` of stride 2**l per bottom-up feature, and the coarsest one subsampled by 2 (``p6``
    above ``p5``; section 4.1).

    Args:
        bottom_up: maps images to features. in_features: names of the features to use, finest first.
        out_channels: of every level. norm: of the lateral and output convolutions.
        fuse: ``sum`` or ``avg`` of lateral and top-down features.

    Raises:
        UserError: the strides of ``in_features`` do not double from one to the next.
    """

    def __init__(
        self, bottom_up: Backbone, in_features: list[str], out_channels: int, norm: str = "", fuse: str = "sum"
    ) -> None:
        super().__init__()
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
        self.fuse = fuse
        self._shapes = {
            f"p{level}": ShapeSpec(channels=out_channels, stride=2**level)
            for level in (*self.levels, self.levels[-1] + 1)
        }

    @property
    def size_divisibility(self) -> int:
        """Number that divides the input's height and width, so that each level is exactly twice the next one's size."""
        return 2 ** self.levels[-1]

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each level that ``forward`` returns."""
        return dict(self._shapes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to a dict: ``p{l}`` -> (N, out_channels, H / 2**l, W / 2**l)."""
        bottom_up = dict(self.bottom_up(x))
        outputs: dict[str, torch.Tensor] = {}
        top_down: torch.Tensor | None = None
        for level, name in zip(reversed(self.levels), reversed(self.in_features), strict=True):
            top_down = self._fuse(self.get_submodule(f"fpn_lateral{level}")(bottom_up.pop(name)), top_down)
            outputs[f"p{level}"] = self.get_submodule(f"fpn_output{level}")(top_down)
        top = self.levels[-1]
        features = {f"p{level}": outputs[f"p{level}"] for level in self.levels}
        features[f"p{top + 1}"] = F.max_pool2d(features[f"p{top}"], kernel_size=1, stride=2)
        return features

    def _fuse(self, lateral: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        if coarser is None:
            return lateral
        # Upsample by 2 (nearest) and add in one pass, by broadcasting over the 2 x 2 cells under each coarser cell.
        height, width = coarser.shape[-2:]
        cells = lateral.unflatten(3, (width, 2)).unflatten(2, (height, 2))  # (N, C, h, 2, w, 2)
        coarser = coarser[:, :, :, None, :, None]
        if torch.is_grad_enabled():
            lateral = (cells + coarser).flatten(4, 5).flatten(2, 3)
        else:
            cells += coarser
        return lateral / 2 if self.fuse == "avg" else lateral


def _check_strides(names: list[str], strides: list[int]) -> None:
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
    fuse = require(cfg, "MODEL.FPN.FUSE_TYPE", ("sum", "avg"))
    bottom_up = build_resnet(cfg, input_shape)
    missing = [name for name in cfg.MODEL.FPN.IN_FEATURES if name not in bottom_up.output_shape()]
    if missing:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES contains {missing}, which MODEL.RESNETS.OUT_FEATURES does not: expected names "
            f"out of {list(cfg.MODEL.RESNETS.OUT_FEATURES)}"
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    norm = require_norm(cfg, "MODEL.FPN.NORM", channels)
    return FPN(bottom_up, cfg.MODEL.FPN.IN_FEATURES, channels, norm=norm, fuse=fuse)
