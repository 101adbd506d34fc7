"""The mask head (arXiv:1703.06870, section 3 and figure 4, right): a mask for each class and region."""

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from d2_maskrcnn.config.validation import require_norm
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.intermediates import active_stages
from d2_maskrcnn.modeling.losses import mask_loss
from d2_maskrcnn.modeling.precision import at_least_float32
from d2_maskrcnn.modeling.shapes import channels_of
from d2_maskrcnn.modeling.training_events import events_wanted, put_events
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMaskHead(nn.Module):
    """3x3 convolutions, a 2x2 transposed convolution of stride 2, and a 1x1 convolution to one logit for each class."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        num_classes: int,
        conv_dims: list[int],
        norm: str = "",
        loss_weight: float = 1.0,
    ) -> None:
        """Args: num_classes: masks of a region, 1 when class-agnostic. conv_dims: widths; the last one is the
        transposed one's.
        """
        super().__init__()
        channels = channels_of(input_shape)
        self.convs: list[str] = []
        for index, dim in enumerate(conv_dims[:-1], start=1):
            conv = ConvNorm(channels, dim, 3, norm=norm, relu=True)
            c2_msra_fill(conv)
            self.add_module(f"mask_fcn{index}", conv)
            self.convs.append(f"mask_fcn{index}")
            channels = dim
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        c2_msra_fill(self.deconv)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.constant_(self.predictor.get_parameter("bias"), 0.0)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Reads ``cfg.MODEL.ROI_MASK_HEAD`` and the number of classes."""
        node = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "norm": require_norm(cfg, "MODEL.ROI_MASK_HEAD.NORM", *[node.CONV_DIM] * node.NUM_CONV),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Args: x (M, C, P, P). Returns logits (M, K or 1, 2P, 2P)."""
        for name in self.convs:
            x = self.get_submodule(name)(x)
        x = F.relu_(self.deconv(x))
        logits = self.predictor(x)
        if (stages := active_stages()) is not None:
            stages.record(mask_logits=logits)
        return logits

    def losses(self, x: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Args: x (F, C, P, P) of foreground regions; classes (F,); targets (F, 2P, 2P) bool. Returns ``loss_mask``."""
        logits = self._of_class(self(x), classes)
        _put_mask_events(logits, targets)
        return {"loss_mask": mask_loss(logits, targets) * self.loss_weight}

    def probabilities(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Args: x (M, C, P, P); classes (M,). Returns the masks' probabilities (M, 1, 2P, 2P) of each region's
        class.
        """
        return at_least_float32(self._of_class(self(x), classes)).sigmoid().unsqueeze(1)

    @staticmethod
    def _of_class(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(M, K or 1, S, S) -> (M, S, S)."""
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits[torch.arange(len(classes), device=classes.device), classes]


def mask_targets(instances: list[Instances], size: int) -> torch.Tensor:
    """What the mask head should predict: the annotated mask inside each region's box, ``size`` x ``size``.

    Args:
        instances: for each image its foreground regions, with ``proposal_boxes`` and ``gt_masks`` (one for each
            region).

    Returns:
        (F, size, size) bool, the images one after the other.
    """
    targets = [
        item.gt_masks.crop_and_resize(item.proposal_boxes.tensor, size) for item in instances if len(item) > 0
    ]  # each (Fi, size, size)
    if not targets:
        device = instances[0].proposal_boxes.device if instances else torch.device("cpu")
        return torch.zeros((0, size, size), dtype=torch.bool, device=device)
    return torch.cat(targets).to(torch.bool)


@torch.no_grad()
def _put_mask_events(logits: torch.Tensor, targets: torch.Tensor) -> None:
    if targets.numel() == 0 or not events_wanted():
        return
    wrong = (logits > 0) != targets
    number, positive = targets.numel(), targets.sum()
    put_events(
        {
            "mask_rcnn/accuracy": 1 - wrong.sum() / number,
            "mask_rcnn/false_positive": (wrong & ~targets).sum() / (number - positive).clamp(min=1),
            "mask_rcnn/false_negative": (wrong & targets).sum() / positive.clamp(min=1),
        }
    )
