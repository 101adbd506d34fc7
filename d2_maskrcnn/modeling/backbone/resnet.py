"""ResNet-50, -101 and -152 (He et al. 2016, arXiv:1512.03385, section 4.1 and table 1); with groups, ResNeXt."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.config.validation import require, require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.backbone.stage import Stage, is_free
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone

BLOCKS_PER_STAGE = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC_BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Stem(CNNBlockBase):
    """Apply a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = ConvNorm(in_channels, out_channels, 7, stride=2, norm=norm, relu=True)
        c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/4, W/4)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class BasicBlock(CNNBlockBase):
    """Apply two 3x3 convolutions, the first with the stride, and add a shortcut: the block of ResNet-18 and -34."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm, relu=True)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm, relu=True)
        _initialize(self.conv1, self.conv2, self.shortcut)

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride).

        Args:
            overwrite: whether the result may be stored in ``x`` where no gradients are needed.
        """
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(self.conv1(x), residual=shortcut, overwrite_residual=overwrite or is_free(self.shortcut))


class Bottleneck(CNNBlockBase):
    """Apply 1x1, 3x3 and 1x1 convolutions and add a shortcut.

    Args:
        bottleneck_channels: of the 3x3 convolution. num_groups, dilation: of the same.
        stride_in_1x1: whether the first 1x1 convolution has the stride, rather than the 3x3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        width = bottleneck_channels
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, stride=first, norm=norm, relu=True)
        self.conv2 = ConvNorm(
            width, width, 3, stride=second, dilation=dilation, groups=num_groups, norm=norm, relu=True
        )
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm, relu=True)
        _initialize(self.conv1, self.conv2, self.conv3, self.shortcut)

    def forward(self, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride).

        Args:
            overwrite: whether the result may be stored in ``x`` where no gradients are needed.
        """
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = self.conv2(self.conv1(x))
        return self.conv3(x, residual=shortcut, overwrite_residual=overwrite or is_free(self.shortcut))


def _initialize(*convs: ConvNorm | None) -> None:
    # Block by block and with the shortcut last, a seed gives the same initial weights as in Detectron2.
    for conv in convs:
        if conv is not None:
            c2_msra_fill(conv)


def make_stage(
    block_class: Any, num_blocks: int, *, in_channels: int, out_channels: int, **kwargs: Any
) -> list[CNNBlockBase]:
    """Build the blocks of a stage; the first one takes ``in_channels``, all others ``out_channels``.

    Args:
        block_class: of the blocks, such as :class:`Bottleneck`.
        **kwargs: arguments of the blocks; a name that ends with ``_per_block`` has a list of one value per block.

    Raises:
        ValueError: such a list has another length than ``num_blocks``.
    """
    blocks = []
    for index in range(num_blocks):
        options = {}
        for name, value in kwargs.items():
            if name.endswith("_per_block") and len(value) != num_blocks:
                raise ValueError(f"{name} has {len(value)} values for {num_blocks} blocks: {value}")
            options[name.removesuffix("_per_block")] = value[index] if name.endswith("_per_block") else value
        blocks.append(block_class(in_channels=in_channels, out_channels=out_channels, **options))
        in_channels = out_channels
    return blocks


def make_default_stages(depth: int, block_class: Any = None, **kwargs: Any) -> list[list[CNNBlockBase]]:
    """Build the four stages of ResNet-18, -34, -50, -101 or -152, for a stem of 64 channels.

    Args:
        block_class: of the blocks; by default :class:`BasicBlock` below depth 50, and :class:`Bottleneck` from 50 on.
        **kwargs: further arguments of the blocks, such as ``norm``.

    Raises:
        ValueError: another depth.
    """
    numbers = {**_BASIC_BLOCKS_PER_STAGE, **BLOCKS_PER_STAGE}
    if depth not in numbers:
        raise ValueError(f"there is no ResNet of depth {depth}: expected one of {', '.join(map(str, numbers))}")
    basic = depth in _BASIC_BLOCKS_PER_STAGE
    stages, channels = [], 64
    for index, number in enumerate(numbers[depth]):
        width = 64 * 2**index
        options = {**kwargs, "stride_per_block": [1 if index == 0 else 2] + [1] * (number - 1)}
        if not basic:
            options.setdefault("bottleneck_channels", width)
        out_channels = width if basic else 4 * width
        block = block_class or (BasicBlock if basic else Bottleneck)
        stages.append(make_stage(block, number, in_channels=channels, out_channels=out_channels, **options))
        channels = out_channels
    return stages


class ResNet(Backbone):
    """Apply the stem and the stages ``res2``, ``res3``, ... as far as they are needed for ``out_features``.

    Args:
        stem: maps images to the input of the first stage. stages: the blocks of each stage, see :func:`make_stage`.
        num_classes: if given, average pooling and a linear classifier, the feature ``linear``, follow.
        out_features: names of the outputs: ``stem``, stages or ``linear``; None for the last one.
        freeze_at: see :meth:`freeze`.

    Raises:
        UserError: there is no output of a given name.
    """

    make_stage = staticmethod(make_stage)
    make_default_stages = staticmethod(make_default_stages)

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.num_classes = num_classes
        names = [f"res{index}" for index in range(2, len(stages) + 2)]
        known = ["stem", *names, *(["linear"] if num_classes is not None else [])]
        out_features = known[-1:] if out_features is None else list(out_features)
        unknown = [name for name in out_features if name not in known]
        if unknown or not out_features:
            raise UserError(f"MODEL.RESNETS.OUT_FEATURES is {out_features}: expected one or more of {', '.join(known)}")
        self.stage_names = tuple(names[: max(known.index(name) for name in out_features)])
        self._out_features = out_features
        self._out_feature_channels, self._out_feature_strides = {"stem": stem.out_channels}, {"stem": stem.stride}
        stride, channels = stem.stride, stem.out_channels
        for name, blocks in zip(self.stage_names, stages, strict=False):
            self.add_module(name, Stage(*blocks))
            stride, channels = stride * math.prod(block.stride for block in blocks), blocks[-1].out_channels
            self._out_feature_strides[name], self._out_feature_channels[name] = stride, channels
        if num_classes is not None:
            self.linear = nn.Linear(channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
        self.freeze(freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images (N, 3, H, W) to a dict: name -> (N, C, H/stride, W/stride); ``linear`` (N, classes)."""
        outputs = {}
        for name in ("stem", *self.stage_names):
            x = self.get_submodule(name)(x)
            if name in self._out_features:
                outputs[name] = x
        if self.num_classes is not None:
            outputs["linear"] = self.linear(x.mean(dim=(2, 3)))
        return {name: outputs[name] for name in self._out_features}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map that ``forward`` returns."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels.get(name), stride=strides.get(name)) for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "ResNet":
        """Freeze the stem (1) and the stages res2 (2), res3 (3), ... up to ``freeze_at``; 0 freezes nothing.

        Their batch norms are replaced by frozen ones, which keep the running statistics.
        """
        stages: list[Any] = [self.get_submodule(name) for name in self.stage_names]
        for part in [[self.stem], *stages][: max(freeze_at, 0)]:
            for block in part:
                block.freeze()
        return self


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
    stem = Stem(channels_of(input_shape), node.STEM_OUT_CHANNELS, norm)
    resnet = ResNet(stem, _stages(node, depth, norm), None, node.OUT_FEATURES)
    for name in resnet.stage_names:
        resnet.get_submodule(name).activation_checkpointing = plugin_node(cfg).SOLVER.ACTIVATION_CHECKPOINTING
    if plugin_node(cfg).RESNETS.ZERO_INIT_RESIDUAL:
        _start_as_identities(resnet)
    return resnet.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


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


def _stages(node: CfgNode, depth: int, norm: str) -> list[list[CNNBlockBase]]:
    """Build all stages, also unused ones: a seed then gives the same initial weights as in Detectron2."""
    stages, channels = [], node.STEM_OUT_CHANNELS
    for index, number in enumerate(BLOCKS_PER_STAGE[depth]):
        dilation = node.RES5_DILATION if index == 3 else 1
        out_channels = node.RES2_OUT_CHANNELS * 2**index
        stages.append(
            make_stage(
                Bottleneck,
                number,
                in_channels=channels,
                out_channels=out_channels,
                bottleneck_channels=node.NUM_GROUPS * node.WIDTH_PER_GROUP * 2**index,
                stride_per_block=[1 if index == 0 or dilation > 1 else 2] + [1] * (number - 1),
                dilation=dilation,
                num_groups=node.NUM_GROUPS,
                stride_in_1x1=node.STRIDE_IN_1X1,
                norm=norm,
            )
        )
        channels = out_channels
    return stages
