"""Box head: pooled region features to a vector (arXiv:1612.03144, section 5.2), then class logits and box deltas.

Shape shorthand: R regions of an image, M of all images, K classes, C channels, P the pooled size, D the vector's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fvcore.nn.weight_init import c2_msra_fill, c2_xavier_fill
from torch import nn

from d2_maskrcnn.config.validation import require, require_norm
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.box_coding import BoxCoder, at_least_float32
from d2_maskrcnn.modeling.losses import (
    BOX_LOSSES,
    box_regression_loss,
    classification_accuracy,
    classification_loss,
    put_scalars,
)
from d2_maskrcnn.modeling.roi_heads.inference import DetectionSelection, DetectionSettings, select_detections
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import has_event_storage

_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


@ROI_BOX_HEAD_REGISTRY.register()
class MaskRCNNBoxHead(nn.Module):
    """Apply 3x3 convolutions, then fully connected layers, each with a ReLU.

    Args:
        input_shape: channels, height and width of the pooled features.
        conv_dims, fc_dims: widths of the layers. conv_norm: of the convolutions.

    Raises:
        UserError: there is no layer at all.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec, *, conv_dims: Sequence[int], fc_dims: Sequence[int], conv_norm: str = ""
    ) -> None:
        super().__init__()
        if not conv_dims and not fc_dims:
            raise UserError("MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are both 0: expected at least one layer")
        self.convs: list[str] = []
        self.fcs: list[str] = []
        channels, height, width = channels_of(input_shape), input_shape.height, input_shape.width
        for index, dim in enumerate(conv_dims, start=1):
            self.add_module(f"conv{index}", ConvNorm(channels, dim, 3, norm=conv_norm, relu=True))
            self.convs.append(f"conv{index}")
            channels = dim
        features = channels * _area(input_shape)
        for index, dim in enumerate(fc_dims, start=1):
            self.add_module(f"fc{index}", RegionLinear(features, dim))
            self.fcs.append(f"fc{index}")
            features = dim
        # After all layers are built, a seed gives the same initial weights as in Detectron2.
        for name in self.convs:
            c2_msra_fill(self.get_submodule(name))
        for name in self.fcs:
            c2_xavier_fill(self.get_submodule(name))
        pooled = ShapeSpec(channels=channels, height=height, width=width)
        self._output_shape = ShapeSpec(channels=features) if fc_dims else pooled

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read ``cfg.MODEL.ROI_BOX_HEAD``."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dims": [node.CONV_DIM] * node.NUM_CONV,
            "fc_dims": [node.FC_DIM] * node.NUM_FC,
            "conv_norm": require_norm(cfg, "MODEL.ROI_BOX_HEAD.NORM", *[node.CONV_DIM] * node.NUM_CONV),
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Channels of the output; height and width as well if there is no fully connected layer."""
        return self._output_shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (M, C, P, P) to (M, D), or to (M, C', P, P) if there is no fully connected layer."""
        for name in self.convs:
            x = self.get_submodule(name)(x)
        for name in self.fcs:
            x = F.relu_(self.get_submodule(name)(x))
        return x


class BoxPredictor(nn.Module):
    """Predict class logits and box deltas of regions from the box head's output.

    Args:
        input_shape: the box head's output shape, or its number of channels. num_classes: K, without the background.
        box2box_transform: between deltas and boxes.
        test_score_thresh, test_nms_thresh, test_topk_per_image: see :class:`DetectionSettings`.
        cls_agnostic_bbox_reg: whether all classes share one box.
        box_reg_loss_type, smooth_l1_beta: see :func:`d2_maskrcnn.modeling.losses.box_regression_loss`.
        loss_weight: factor of the losses, or those of ``loss_cls`` and ``loss_box_reg``; 1 if missing.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        box2box_transform: BoxCoder,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
    ) -> None:
        super().__init__()
        shape = ShapeSpec(channels=input_shape) if isinstance(input_shape, int) else input_shape
        features = channels_of(shape) * _area(shape)
        self.cls_score = nn.Linear(features, num_classes + 1)
        self.bbox_pred = nn.Linear(features, 4 if cls_agnostic_bbox_reg else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.num_classes = num_classes
        self.box2box_transform = box2box_transform
        self.settings = DetectionSettings(test_score_thresh, test_nms_thresh, test_topk_per_image)
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta
        names = ("loss_cls", "loss_box_reg")
        self.loss_weight = loss_weight if isinstance(loss_weight, dict) else dict.fromkeys(names, loss_weight)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read ``cfg.MODEL.ROI_HEADS``, ``ROI_BOX_HEAD`` and ``TEST.DETECTIONS_PER_IMAGE``."""
        node, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": BoxCoder(tuple(box.BBOX_REG_WEIGHTS)),
            "num_classes": node.NUM_CLASSES,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "cls_agnostic_bbox_reg": box.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": box.SMOOTH_L1_BETA,
            "box_reg_loss_type": require(cfg, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", BOX_LOSSES),
            "loss_weight": {"loss_box_reg": box.BBOX_REG_LOSS_WEIGHT},
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (M, D) or (M, C, P, P) to logits (M, K + 1) and deltas (M, 4K), or (M, 4) if class-agnostic."""
        x = at_least_float32(x.flatten(1))  # also where the box head computes in half precision
        return self.cls_score(x), self.bbox_pred(x)

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Average the classification loss over all M regions; divide the sum over F of the box loss by M as well.

        Args:
            predictions: what :meth:`forward` returns. proposals: per image ``proposal_boxes`` and ``gt_classes``, and
                ``gt_boxes`` if the image has ground truth; no image gives losses of 0.
        """
        logits, deltas = (at_least_float32(x) for x in predictions)
        if not proposals:
            return {"loss_cls": logits.sum() * 0.0, "loss_box_reg": deltas.sum() * 0.0}
        classes = torch.cat([item.gt_classes for item in proposals])  # (M,)
        foreground = (classes < self.num_classes).nonzero().flatten()  # (F,)
        if self.training and has_event_storage():
            put_scalars(classification_accuracy(logits, classes, foreground, self.num_classes))
        boxes = torch.cat([item.proposal_boxes.tensor for item in proposals])
        gt_boxes = [item.gt_boxes if item.has("gt_boxes") else item.proposal_boxes for item in proposals]
        box_loss = box_regression_loss(
            self.box_reg_loss_type,
            self.box2box_transform,
            deltas_of_class(deltas[foreground], classes[foreground]),
            boxes[foreground],
            torch.cat([item.tensor for item in gt_boxes])[foreground],
            self.smooth_l1_beta,
        )
        losses = {"loss_cls": classification_loss(logits, classes), "loss_box_reg": box_loss / max(len(classes), 1)}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Return the detections of each image, and the indices of the proposals that they come from."""
        selection = self.select(predictions, proposals)
        return selection.detections, selection.regions()

    def select(self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]) -> DetectionSelection:
        """Return the detections with the candidates that they were selected from."""
        sizes = [item.image_size for item in proposals]
        boxes = [item.unflatten(1, (-1, 4)) for item in self.predict_boxes(predictions, proposals)]
        return select_detections(self.predict_probs(predictions, proposals), boxes, sizes, self.settings)

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Return the refined boxes (R, 4K), or (R, 4) if class-agnostic, of each image, not clipped."""
        if not proposals:
            return []
        boxes = torch.cat([item.proposal_boxes.tensor for item in proposals])
        decoded = self.box2box_transform.decode(at_least_float32(predictions[1]), boxes)
        return list(decoded.split([len(item) for item in proposals]))

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Return the boxes (R, 4) of each image, refined for the class of the ground truth, not clipped."""
        rois = BoxPredictions(proposals, at_least_float32(predictions[0]), at_least_float32(predictions[1]))
        refined = rois.refined_rois(self.box2box_transform, self.num_classes)
        return [item.proposal_boxes.tensor for item in refined]

    def predict_probs(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Return the class probabilities (R, K + 1) of each image, the background last."""
        probabilities = at_least_float32(predictions[0]).softmax(dim=1)
        return list(probabilities.split([len(item) for item in proposals]))


class RegionLinear(nn.Linear):
    """Apply a fully connected layer to whole regions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (M, C, P, P) or (M, D) to (M, D')."""
        if x.dim() == 4 and x.device.type == "cpu" and not torch.is_grad_enabled() and _HAS_AVX512:
            # The same sums as a convolution over the region: with AVX-512 oneDNN takes as long as the BLAS on Intel's
            # processors and a third of its time on AMD's; with AVX2 it takes ten times as long.
            return F.conv2d(x, self.weight.view(-1, *x.shape[1:]), self.bias).flatten(1)
        return super().forward(x.flatten(1))


@dataclass
class BoxPredictions:
    """Regions and what the box head predicts for them.

    Attributes:
        rois: per image Instances with ``proposal_boxes`` and, in training, ``gt_classes``, ``gt_boxes``, ``gt_index``.
        logits: (M, K + 1). deltas: (M, 4K), or (M, 4) if class-agnostic.
    """

    rois: list[Instances]
    logits: torch.Tensor
    deltas: torch.Tensor

    def boxes(self) -> torch.Tensor:
        """Return the regions' boxes (M, 4)."""
        return torch.cat([item.proposal_boxes.tensor for item in self.rois])

    def split(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Split values (M, ...) of all images into one tensor (R, ...) per image."""
        return list(values.split([len(item) for item in self.rois]))

    @torch.no_grad()
    def refined_rois(self, coder: BoxCoder, num_classes: int) -> list[Instances]:
        """Replace the boxes of training regions by those refined for the ground-truth class, not clipped."""
        refined = []
        for item, deltas in zip(self.rois, self.split(self.deltas), strict=True):
            class_deltas = deltas_of_class(deltas, item.gt_classes.clamp(max=num_classes - 1))
            boxes = Boxes(coder.decode(class_deltas, item.proposal_boxes.tensor))
            refined.append(Instances(item.image_size, **{**item.get_fields(), "proposal_boxes": boxes}))
        return refined


def deltas_of_class(deltas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Select the deltas of one class per region: (M, 4K or 4), (M,) -> (M, 4)."""
    if deltas.shape[1] == 4:
        return deltas
    return deltas.unflatten(1, (-1, 4))[torch.arange(len(classes), device=classes.device), classes]


def _area(shape: ShapeSpec) -> int:
    """Height times width; 1 for a vector."""
    return (shape.height or 1) * (shape.width or 1)
