"""The box head: region features to a vector (arXiv:1612.03144, section 5.2), and the predictor of class and box."""

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import nn

from d2_maskrcnn.config.validation import require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.shapes import area_of, channels_of
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY


@ROI_BOX_HEAD_REGISTRY.register()
class MaskRCNNBoxHead(nn.Module):
    """3x3 convolutions, then fully connected layers, each with a ReLU."""

    @configurable
    def __init__(self, *, input_shape: ShapeSpec, conv_dims: list[int], fc_dims: list[int], norm: str = "") -> None:
        """Args: input_shape: channels, height and width of the pooled features. norm: of the convolutions.

        Raises:
            UserError: no layer at all.
        """
        super().__init__()
        if not conv_dims and not fc_dims:
            raise UserError("MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are both 0: expected at least one layer")
        self.convs: list[str] = []
        self.fcs: list[str] = []
        channels, height, width = channels_of(input_shape), input_shape.height, input_shape.width
        for index, dim in enumerate(conv_dims, start=1):
            conv = ConvNorm(channels, dim, 3, norm=norm, relu=True)
            c2_msra_fill(conv)
            self.add_module(f"conv{index}", conv)
            self.convs.append(f"conv{index}")
            channels = dim
        features = channels * area_of(input_shape)
        for index, dim in enumerate(fc_dims, start=1):
            fc = RegionLinear(features, dim)
            c2_xavier_fill(fc)
            self.add_module(f"fc{index}", fc)
            self.fcs.append(f"fc{index}")
            features = dim
        flat = bool(fc_dims)
        self._output_shape = (
            ShapeSpec(channels=features) if flat else ShapeSpec(channels=channels, height=height, width=width)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Reads ``cfg.MODEL.ROI_BOX_HEAD``."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [node.CONV_DIM] * node.NUM_CONV,
            "fc_dims": [node.FC_DIM] * node.NUM_FC,
            "norm": require_norm(cfg, "MODEL.ROI_BOX_HEAD.NORM", *[node.CONV_DIM] * node.NUM_CONV),
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the vector; height and width as well where there is no fully connected layer."""
        return self._output_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args: x (M, C, P, P). Returns (M, D), or (M, C', P, P) where there is no fully connected layer."""
        for name in self.convs:
            x = self.get_submodule(name)(x)
        for name in self.fcs:
            x = F.relu_(self.get_submodule(name)(x))
        return x


class BoxPredictor(nn.Module):
    """Class logits and box deltas of regions, from the box head's output."""

    def __init__(self, input_shape: ShapeSpec, num_classes: int, class_agnostic: bool = False) -> None:
        """Args: num_classes: K, without the background. class_agnostic: one box for all classes instead of one for
        each.
        """
        super().__init__()
        features = channels_of(input_shape) * area_of(input_shape)
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 if class_agnostic else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Args: x (M, D) or (M, C, P, P). Returns logits (M, K + 1) and deltas (M, 4K), or (M, 4) when
        class-agnostic.
        """
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)


class RegionLinear(nn.Linear):
    """A fully connected layer over whole regions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args: x (M, C, P, P) or (M, D), which is flattened. Returns (M, D')."""
        if x.dim() == 4 and x.device.type == "cpu" and not torch.is_grad_enabled():
            # The same sums as a convolution over the region: oneDNN's is up to three times as fast as the CPU's BLAS.
            return F.conv2d(x, self.weight.view(-1, *x.shape[1:]), self.bias).flatten(1)
        return super().forward(x.flatten(1))
