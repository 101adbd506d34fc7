"""ResNet-50, -101 and -152 (He et al. 2016, arXiv:1512.03385, section 4.1 and table 1); with groups, ResNeXt."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.config.validation import require, require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone

BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
STAGE_NAMES = ("res2", "res3", "res4", "res5")


class Stem(nn.Module):
    """Apply a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 7, stride=2, norm=norm, relu=True)
        c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/4, W/4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


@dataclass(frozen=True)
class BlockShape:
    """Widths and strides of a bottleneck block.

    Attributes:
        stride_in_1x1: whether the first 1x1 convolution has the stride, rather than the 3x3.
    """

    in_channels: int
    bottleneck_channels: int
    out_channels: int
    stride: int
    dilation: int
    groups: int
    stride_in_1x1: bool


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 and 1x1 convolutions and add a shortcut."""

    def __init__(self, shape: BlockShape, norm: str) -> None:
        super().__init__()
        s, width = shape, shape.bottleneck_channels
        self.shortcut = None
        if s.in_channels != s.out_channels:
            self.shortcut = ConvNorm(s.in_channels, s.out_channels, 1, stride=s.stride, norm=norm)
        first, second = (s.stride, 1) if s.stride_in_1x1 else (1, s.stride)
        self.conv1 = ConvNorm(s.in_channels, width, 1, stride=first, norm=norm, relu=True)
        self.conv2 = ConvNorm(
            width, width, 3, stride=second, dilation=s.dilation, groups=s.groups, norm=norm, relu=True
        )
        self.conv3 = ConvNorm(width, s.out_channels, 1, norm=norm, relu=True)
        # Block by block and in this order, a seed gives the same initial weights as in Detectron2.
        for conv in (self.conv1, self.conv2, self.conv3, self.shortcut):
            if conv is not None:
                c2_msra_fill(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv3(self.conv2(self.conv1(x)), residual=shortcut)


class ResNet(Backbone):
    """Apply the stem and the stages ``res2`` ... ``res5``, as far as they are needed for ``out_features``.

    Args:
        stages: name -> blocks, in order. shapes: channels and stride of the outputs of the stem and of every stage.
        out_features: names of the stages (or ``stem``) whose outputs are returned.
    """

    def __init__(
        self, stem: Stem, stages: dict[str, nn.Sequential], shapes: dict[str, ShapeSpec], out_features: list[str]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stage_names = tuple(stages)
        for name, blocks in stages.items():
            self.add_module(name, blocks)
        self._shapes = shapes
        self._out_features = list(out_features)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to a dict: name -> (N, C, H/stride, W/stride)."""
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = self.get_submodule(name)(x)
            if name in self._out_features:
                outputs[name] = x
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map that ``forward`` returns."""
        return {name: self._shapes[name] for name in self._out_features}

    def freeze(self, freeze_at: int) -> None:
        """Freeze the stem (1) and the stages res2 (2), res3 (3), ... up to ``freeze_at``; 0 freezes nothing.

        Their batch norms are replaced by frozen ones, which keep the running statistics.
        """
        frozen = [self.stem, *(self.get_submodule(name) for name in self.stage_names)][: max(freeze_at, 0)]
        for part in frozen:
            part.requires_grad_(False)
            FrozenBatchNorm2d.convert_frozen_batchnorm(part)


def build_resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build the ResNet of ``cfg.MODEL.RESNETS``, with its first ``cfg.MODEL.BACKBONE.FREEZE_AT`` stages frozen.

    Raises:
        UserError: a depth, an option or a feature name is not supported.
    """
    node = cfg.MODEL.RESNETS
    depth = require(cfg, "MODEL.RESNETS.DEPTH", tuple(BLOCKS_PER_STAGE))
    require(cfg, "MODEL.RESNETS.RES5_DILATION", (1, 2))
    if any(node.DEFORM_ON_PER_STAGE):
        raise UserError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE is {list(node.DEFORM_ON_PER_STAGE)}, but this model has no deformable "
            "convolutions: set all four to False"
        )
    norm = require_norm(
        cfg,
        "MODEL.RESNETS.NORM",
        node.STEM_OUT_CHANNELS,
        node.RES2_OUT_CHANNELS,
        node.NUM_GROUPS * node.WIDTH_PER_GROUP,
    )
    blocks = _first_blocks(node)
    stem = Stem(channels_of(input_shape), node.STEM_OUT_CHANNELS, norm)
    stages, shapes, stride = {}, {"stem": ShapeSpec(channels=node.STEM_OUT_CHANNELS, stride=4)}, 4
    for (name, block), number in zip(blocks.items(), BLOCKS_PER_STAGE[depth], strict=False):
        stages[name] = _build_stage(block, number, norm)
        stride *= block.stride
        shapes[name] = ShapeSpec(channels=block.out_channels, stride=stride)
    resnet = ResNet(stem, stages, shapes, node.OUT_FEATURES)
    if plugin_node(cfg).RESNETS.ZERO_INIT_RESIDUAL:
        _start_as_identities(resnet)
    resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return resnet


def _start_as_identities(resnet: ResNet) -> None:
    """Zero the weight of every block's last norm (Goyal et al. 2017, arXiv:1706.02677, section 5.1)."""
    for module in resnet.modules():
        if isinstance(module, Bottleneck):
            norm = module.conv3.norm
            if isinstance(norm, FrozenBatchNorm2d) or norm is None:
                raise UserError(
                    "D2_MASKRCNN.RESNETS.ZERO_INIT_RESIDUAL needs norms with trainable weights: set "
                    "MODEL.RESNETS.NORM to BN, SyncBN or GN"
                )
            nn.init.zeros_(norm.weight)


def _needed_stages(out_features: list[str]) -> tuple[str, ...]:
    known = ("stem", *STAGE_NAMES)
    unknown = [name for name in out_features if name not in known]
    if unknown or not out_features:
        raise UserError(
            f"MODEL.RESNETS.OUT_FEATURES is {list(out_features)}: expected one or more of {', '.join(known)}"
        )
    return STAGE_NAMES[: max(known.index(name) for name in out_features)]


def _first_blocks(node: CfgNode) -> dict[str, BlockShape]:
    """Return the shape of the first block of each stage that ``node.OUT_FEATURES`` needs."""
    blocks, channels = {}, node.STEM_OUT_CHANNELS
    for index, name in enumerate(_needed_stages(node.OUT_FEATURES)):
        dilation = node.RES5_DILATION if name == "res5" else 1
        blocks[name] = BlockShape(
            in_channels=channels,
            bottleneck_channels=node.NUM_GROUPS * node.WIDTH_PER_GROUP * 2**index,
            out_channels=node.RES2_OUT_CHANNELS * 2**index,
            stride=1 if index == 0 or dilation > 1 else 2,
            dilation=dilation,
            groups=node.NUM_GROUPS,
            stride_in_1x1=node.STRIDE_IN_1X1,
        )
        channels = blocks[name].out_channels
    return blocks


def _build_stage(first: BlockShape, num_blocks: int, norm: str) -> nn.Sequential:
    """Build ``num_blocks`` bottlenecks, of which only the first has a stride and changes the width."""
    rest = replace(first, in_channels=first.out_channels, stride=1)
    return nn.Sequential(*(Bottleneck(first if index == 0 else rest, norm) for index in range(num_blocks)))
