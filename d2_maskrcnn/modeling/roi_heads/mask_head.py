"""Mask head: a mask per region and class (arXiv:1703.06870, section 3 and figure 4, right).

Shape shorthand: M regions, F foreground regions, K classes, C channels, P the pooled size, S = 2P the mask size.
"""

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

from d2_maskrcnn.config.validation import require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.box_coding import at_least_float32
from d2_maskrcnn.modeling.losses import mask_accuracy, mask_loss, put_scalars
from d2_maskrcnn.modeling.roi_heads.targets import mask_targets
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.events import has_event_storage


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMaskHead(nn.Module):
    """Apply 3x3 convolutions, a 2x2 transposed convolution of stride 2, and a 1x1 convolution to a logit per class.

    Args:
        input_shape: of the pooled features. num_classes: masks per region; 1 if class-agnostic.
        conv_dims: widths of the convolutions; the last one is the transposed convolution's.
        norm: of the 3x3 convolutions. loss_weight: factor of ``loss_mask``.
    """

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
        super().__init__()
        channels = channels_of(input_shape)
        self.convs: list[str] = []
        for index, dim in enumerate(conv_dims[:-1], start=1):
            self.add_module(f"mask_fcn{index}", ConvNorm(channels, dim, 3, norm=norm, relu=True))
            self.convs.append(f"mask_fcn{index}")
            channels = dim
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        # After all layers are built, a seed gives the same initial weights as in Detectron2.
        for name in (*self.convs, "deconv"):
            c2_msra_fill(self.get_submodule(name))
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.constant_(self.predictor.get_parameter("bias"), 0.0)
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read ``cfg.MODEL.ROI_MASK_HEAD`` and the number of classes."""
        node = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "norm": require_norm(cfg, "MODEL.ROI_MASK_HEAD.NORM", *[node.CONV_DIM] * node.NUM_CONV),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (M, C, P, P) to logits (M, K or 1, S, S)."""
        for name in self.convs:
            x = self.get_submodule(name)(x)
        x = F.relu_(self.deconv(x))
        logits: torch.Tensor = self.predictor(x)
        return logits

    def losses(self, x: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute ``loss_mask``. Args: x (F, C, P, P); classes (F,), ground truth; targets (F, S, S) bool."""
        logits = _logits_of_class(self(x), classes)
        if self.training and has_event_storage():
            put_scalars(mask_accuracy(logits, targets))
        return {"loss_mask": mask_loss(logits, targets) * self.loss_weight}

    def probabilities(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Predict the masks (M, 1, S, S), in [0, 1], of each region's class. Args: x (M, C, P, P); classes (M,)."""
        return at_least_float32(_logits_of_class(self(x), classes)).sigmoid().unsqueeze(1)


def add_masks(head: nn.Module, x: torch.Tensor, instances: list[Instances]) -> None:
    """Add ``pred_masks`` (n, 1, S, S), in [0, 1], to the instances of each image, in place.

    Args:
        head: a :class:`MaskRCNNMaskHead`, or a module with the interface of Detectron2's mask heads: called with ``x``
            and ``instances``, it adds the masks itself.
        x: (M, C, P, P), pooled features of all instances. instances: per image, with ``pred_classes``.
    """
    if not isinstance(head, MaskRCNNMaskHead):
        head(x, instances)
        return
    masks = head.probabilities(x, torch.cat([item.pred_classes for item in instances]))
    for item, item_masks in zip(instances, masks.split([len(item) for item in instances]), strict=True):
        item.pred_masks = item_masks


def mask_losses(
    head: nn.Module, x: torch.Tensor, foreground: list[Instances]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Compute the losses of a mask head.

    Args:
        head: as for :func:`add_masks`; in training mode Detectron2's mask heads return their losses.
        x: (F, C, P, P). foreground: per image its regions, with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``.

    Returns:
        losses: name -> weighted scalar. targets: (F, S, S) bool; None if the head does not use them.

    Raises:
        UserError: a mask head of Detectron2's interface is in evaluation mode, in which it has no losses.
    """
    if isinstance(head, MaskRCNNMaskHead):
        targets = mask_targets(foreground, 2 * x.shape[-1])
        return head.losses(x, torch.cat([item.gt_classes for item in foreground]), targets), targets
    if not head.training:
        raise UserError(
            f"the mask head {type(head).__name__} has no losses in evaluation mode: set D2_MASKRCNN.VALIDATION_LOSS to "
            "False"
        )
    return head(x, foreground), None


def _logits_of_class(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Select one mask per region: (M, K or 1, S, S), (M,) -> (M, S, S)."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(classes), device=classes.device), classes]
