"""Mask head: a mask per region and class (arXiv:1703.06870, section 3 and figure 4, right).

Shape shorthand: M regions, F foreground regions, K classes, C channels, P the pooled size, S = 2P the mask size.
"""

from collections.abc import Sequence
from typing import Any

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
from d2_maskrcnn.ops.tracing import is_recorded
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.events import has_event_storage

REGIONS_AT_A_TIME = 16  # that are upsampled together on a CPU, without gradients


class BaseMaskHead(nn.Module):
    """Compute losses or masks from the logits of a subclass's :meth:`layers`.

    Args:
        loss_weight: factor of ``loss_mask``. vis_period: not used, but part of Detectron2's interface.
    """

    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``cfg.VIS_PERIOD``."""
        return {"vis_period": cfg.VIS_PERIOD}

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (M, C, P, P) to logits (M, K or 1, S, S); defined by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} does not define layers")

    def forward(self, x: torch.Tensor, instances: list[Instances] | None = None) -> Any:
        """Return the logits of :meth:`layers`; with ``instances``, their losses in training mode, else their masks.

        Args:
            x: (M, C, P, P), pooled features of all instances.
            instances: per image; in training the foreground regions, see :func:`mask_losses`, otherwise the
                detections, which get ``pred_masks``, see :func:`add_masks`.
        """
        logits = self.layers(x)
        if instances is None:
            return logits
        if self.training:
            return {"loss_mask": mask_rcnn_loss(logits, instances) * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def losses(self, x: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute ``loss_mask``. Args: x (F, C, P, P); classes (F,), ground truth; targets (F, S, S) bool."""
        return {"loss_mask": _loss(self.layers(x), classes, targets, self.training) * self.loss_weight}

    def probabilities(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Predict the masks (M, 1, S, S), in [0, 1], of each region's class. Args: x (M, C, P, P); classes (M,)."""
        return _probabilities(self.layers(x), classes)


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNMaskHead(BaseMaskHead):
    """Apply 3x3 convolutions, a 2x2 transposed convolution of stride 2, and a 1x1 convolution to a logit per class.

    Args:
        input_shape: of the pooled features. num_classes: masks per region; 1 if class-agnostic.
        conv_dims: widths of the convolutions; the last one is the transposed convolution's.
        conv_norm: of the 3x3 convolutions. **kwargs: arguments of :class:`BaseMaskHead`.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, num_classes: int, conv_dims: Sequence[int], conv_norm: str = "", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        channels = channels_of(input_shape)
        self.convs: list[str] = []
        for index, dim in enumerate(conv_dims[:-1], start=1):
            self.add_module(f"mask_fcn{index}", ConvNorm(channels, dim, 3, norm=conv_norm, relu=True))
            self.convs.append(f"mask_fcn{index}")
            channels = dim
        self.deconv = nn.ConvTranspose2d(channels, conv_dims[-1], kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        # After all layers are built, a seed gives the same initial weights as in Detectron2.
        for name in (*self.convs, "deconv"):
            c2_msra_fill(self.get_submodule(name))
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.constant_(self.predictor.get_parameter("bias"), 0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``cfg.MODEL.ROI_MASK_HEAD`` and the number of classes."""
        node = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "conv_norm": require_norm(cfg, "MODEL.ROI_MASK_HEAD.NORM", *[node.CONV_DIM] * node.NUM_CONV),
        }

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features (M, C, P, P) to logits (M, K or 1, S, S)."""
        for name in self.convs:
            x = self.get_submodule(name)(x)
        if x.device.type != "cpu" or torch.is_grad_enabled() or is_recorded():
            return self._upsample(x)
        # Part by part: the upsampled features of all regions would be the peak of the model's memory.
        first, *others = x.split(REGIONS_AT_A_TIME)
        upsampled = self._upsample(first)
        if not others:
            return upsampled
        shape, channels_last = (len(x), *upsampled.shape[1:]), torch.channels_last
        order = channels_last if upsampled.is_contiguous(memory_format=channels_last) else torch.contiguous_format
        logits = torch.empty(shape, dtype=upsampled.dtype, memory_format=order)  # torch.cat would need twice its memory
        logits[: len(first)] = upsampled
        for index, part in enumerate(others, start=1):
            logits[index * REGIONS_AT_A_TIME :][: len(part)] = self._upsample(part)
        return logits

    def _upsample(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.predictor(F.relu_(self.deconv(x)))
        return logits


def mask_rcnn_loss(logits: torch.Tensor, instances: list[Instances], vis_period: int = 0) -> torch.Tensor:
    """Compute the loss of masks without its weight. Args: logits (F, K or 1, S, S); instances: foreground regions."""
    return _loss(logits, _classes(instances, "gt_classes"), mask_targets(instances, logits.shape[-1]), True)


def mask_rcnn_inference(logits: torch.Tensor, instances: list[Instances]) -> None:
    """Add ``pred_masks`` (n, 1, S, S), in [0, 1], to the instances of each image, in place.

    Args:
        logits: (M, K or 1, S, S), of all instances. instances: per image, with ``pred_classes``.
    """
    masks = _probabilities(logits, _classes(instances, "pred_classes"))
    for item, item_masks in zip(instances, masks.split([len(item) for item in instances]), strict=True):
        item.pred_masks = item_masks


def _classes(instances: list[Instances], name: str) -> torch.Tensor:
    return torch.cat([item.get(name) for item in instances])


def _probabilities(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return at_least_float32(_logits_of_class(logits, classes)).sigmoid().unsqueeze(1)


def _loss(logits: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor, log: bool) -> torch.Tensor:
    chosen = _logits_of_class(logits, classes)
    if log and has_event_storage():
        put_scalars(mask_accuracy(chosen, targets))
    return mask_loss(chosen, targets)


def _is_ours(head: nn.Module) -> bool:
    return isinstance(head, BaseMaskHead) and type(head).forward is BaseMaskHead.forward


def add_masks(head: nn.Module, x: torch.Tensor, instances: list[Instances]) -> None:
    """Add ``pred_masks`` (n, 1, S, S), in [0, 1], to the instances of each image, in place.

    Args:
        head: a :class:`BaseMaskHead`, or a module with the interface of Detectron2's mask heads: called with ``x`` and
            ``instances``, it adds the masks itself.
        x: (M, C, P, P), pooled features of all instances. instances: per image, with ``pred_classes``.
    """
    if _is_ours(head):
        mask_rcnn_inference(head(x), instances)
    else:
        head(x, instances)


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
    if isinstance(head, BaseMaskHead) and _is_ours(head):
        logits = head(x)
        targets = mask_targets(foreground, logits.shape[-1])
        loss = _loss(logits, _classes(foreground, "gt_classes"), targets, head.training)
        return {"loss_mask": loss * head.loss_weight}, targets
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
