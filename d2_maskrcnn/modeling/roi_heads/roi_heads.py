"""ROI heads: classify and refine proposals, and predict a mask per detection (arXiv:1703.06870, section 3).

Shape shorthand: N images, R regions of an image, M of all images, F foreground regions among them, K classes (class K
is the background), C channels, P the pooled size. Boxes are XYXY in pixels of the network's input image.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import level_names, require
from d2_maskrcnn.modeling.backbone.conv_norm import channels_of
from d2_maskrcnn.modeling.box_coding import BoxCoder, at_least_float32
from d2_maskrcnn.modeling.losses import (
    BOX_LOSSES,
    box_regression_loss,
    classification_accuracy,
    classification_loss,
    put_scalars,
)
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictions, BoxPredictor, deltas_of_class
from d2_maskrcnn.modeling.roi_heads.inference import DetectionSelection, DetectionSettings, select_detections
from d2_maskrcnn.modeling.roi_heads.mask_head import add_masks, mask_losses
from d2_maskrcnn.modeling.roi_heads.targets import (
    append_gt,
    foreground_with_masks,
    label_rois,
    proposal_classes,
)
from d2_maskrcnn.modeling.sampling import sample_labels
from d2_maskrcnn.ops import ROIPooler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import has_event_storage


@dataclass
class ROITraining:
    """Everything that the ROI heads compute for the losses.

    Attributes:
        classes: per image the class of every proposal before sampling: K background, -1 ignored. Ground-truth boxes
            that were appended to the proposals come last.
        predictions: of the sampled proposals.
        rois: per image the sampled proposals; their boxes are refined if the mask head is trained on refined boxes.
        mask_rois: per image the foreground regions whose masks are predicted. mask_targets: (F, 2P, 2P) bool. Both
            None without a mask head, the latter also with a mask head of the user's own.
        losses: weighted scalars.
    """

    classes: list[torch.Tensor]
    predictions: BoxPredictions
    rois: list[Instances]
    losses: dict[str, torch.Tensor]
    mask_rois: list[Instances] | None = None
    mask_targets: torch.Tensor | None = None


@ROI_HEADS_REGISTRY.register()
class MaskRCNNROIHeads(nn.Module):
    """Apply the box head and, unless switched off, the mask head to pooled region features.

    Args:
        in_features: names of the feature levels to pool from, finest first.
        batch_size_per_image: proposals per image that enter the losses. positive_fraction: maximum share of objects
            among them, in [0, 1].
        proposal_append_gt: whether ground-truth boxes are added to the proposals in training.
        box_loss, smooth_l1_beta: see :func:`d2_maskrcnn.modeling.losses.box_regression_loss`.
        train_on_pred_boxes: whether the mask head is trained on the refined boxes instead of the proposals.
        mask_pooler, mask_head: None for boxes only.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        num_classes: int,
        proposal_matcher: Matcher,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_append_gt: bool,
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        box_coder: BoxCoder,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        box_loss_weight: float = 1.0,
        detection_settings: DetectionSettings,
        train_on_pred_boxes: bool = False,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_append_gt = proposal_append_gt
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.box_coder = box_coder
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.detection_settings = detection_settings
        self.train_on_pred_boxes = train_on_pred_boxes
        self.mask_pooler: Any = mask_pooler
        self.mask_head: Any = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read ``cfg.MODEL.ROI_HEADS``, ``ROI_BOX_HEAD``, ``ROI_MASK_HEAD`` and ``TEST.DETECTIONS_PER_IMAGE``."""
        node, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        in_features = level_names(cfg, "MODEL.ROI_HEADS.IN_FEATURES", input_shape)
        channels = channels_of(input_shape[in_features[0]])
        box_pooler = ROIPooler.from_cfg(cfg, "MODEL.ROI_BOX_HEAD", input_shape, in_features)
        height, width = box_pooler.output_size
        box_head: Any = build_box_head(cfg, ShapeSpec(channels=channels, height=height, width=width))
        parts: dict[str, object] = {
            "in_features": in_features,
            "num_classes": node.NUM_CLASSES,
            "proposal_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS),
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "proposal_append_gt": node.PROPOSAL_APPEND_GT,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": BoxPredictor(cfg, box_head.output_shape),
            "box_coder": BoxCoder(tuple(box.BBOX_REG_WEIGHTS)),
            "box_loss": require(cfg, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", BOX_LOSSES),
            "smooth_l1_beta": box.SMOOTH_L1_BETA,
            "box_loss_weight": box.BBOX_REG_LOSS_WEIGHT,
            "detection_settings": DetectionSettings(
                node.SCORE_THRESH_TEST, node.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
            ),
            "train_on_pred_boxes": box.TRAIN_ON_PRED_BOXES,
        }
        if cfg.MODEL.MASK_ON:
            mask_pooler = ROIPooler.from_cfg(cfg, "MODEL.ROI_MASK_HEAD", input_shape, in_features)
            height, width = mask_pooler.output_size
            parts["mask_pooler"] = mask_pooler
            parts["mask_head"] = build_mask_head(cfg, ShapeSpec(channels=channels, height=height, width=width))
        return parts

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Return the losses if ground truth is given, the detections otherwise.

        Args:
            images: not used, but part of the interface of Detectron2's ROI heads.
            features: name -> (N, C, Hi, Wi).
            proposals: per image Instances with ``proposal_boxes`` and ``objectness_logits``.
            targets: per image ``gt_boxes``, ``gt_classes`` and, with a mask head, ``gt_masks``.

        Returns:
            instances: with ground truth the sampled proposals, otherwise the detections, whose ``pred_masks``
                (n, 1, 2P, 2P) are probabilities inside each box.
            losses: ``loss_cls``, ``loss_box_reg``, ``loss_mask``; empty without ground truth.
        """
        if targets is None:
            _, selection = self.detect(features, proposals)
            return selection.detections, {}
        training = self.compute_losses(features, proposals, targets)
        return training.rois, training.losses

    def detect(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> tuple[BoxPredictions, DetectionSelection]:
        """Compute the detections and the predictions that they were selected from; see :meth:`forward`."""
        levels = self._levels(features)
        predictions = self._predict_boxes(levels, proposals)
        boxes = self.box_coder.decode(predictions.deltas, predictions.boxes()).unflatten(1, (-1, 4))  # (M, K or 1, 4)
        selection = select_detections(
            predictions.split(predictions.logits.softmax(dim=1)),
            predictions.split(boxes),
            [item.image_size for item in proposals],
            self.detection_settings,
        )
        self._add_masks(levels, selection.detections)
        return predictions, selection

    def compute_losses(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances],
        generator: torch.Generator | None = None,
    ) -> ROITraining:
        """Compute the losses, with all intermediate tensors; for the other arguments see :meth:`forward`.

        Args:
            generator: of the random sampling of proposals; None for PyTorch's global one.
        """
        levels = self._levels(features)
        rois, classes = self._sample_proposals(proposals, targets, generator)
        predictions = self._predict_boxes(levels, rois)
        training = ROITraining(classes, predictions, rois, self._box_losses(predictions))
        if self.mask_head is not None:
            self._add_mask_losses(levels, targets, training)
        return training

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` to instances that have ``pred_boxes`` and ``pred_classes``, in place, and return them."""
        self._add_masks(self._levels(features), instances)
        return instances

    def _levels(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [features[name] for name in self.in_features]

    def _predict_boxes(self, levels: list[torch.Tensor], rois: list[Instances]) -> BoxPredictions:
        pooled = self.box_pooler(levels, [item.proposal_boxes for item in rois])  # (M, C, P, P)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return BoxPredictions(rois, at_least_float32(logits), at_least_float32(deltas))

    def _add_masks(self, levels: list[torch.Tensor], instances: list[Instances]) -> None:
        if self.mask_head is None or not instances:
            return
        pooled = self.mask_pooler(levels, [item.pred_boxes for item in instances])  # (M, C, P, P)
        add_masks(self.mask_head, pooled, instances)

    @torch.no_grad()
    def _sample_proposals(
        self, proposals: list[Instances], targets: list[Instances], generator: torch.Generator | None
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Return the sampled proposals of each image with their ground truth, and the classes of all proposals."""
        sampled, all_classes, foreground, background = [], [], 0, 0
        for item, target in zip(proposals, targets, strict=True):
            if self.proposal_append_gt:
                item = append_gt(item, target)
            matches, labels = self.proposal_matcher(pairwise_iou(target.gt_boxes, item.proposal_boxes))
            classes = proposal_classes(matches, labels, target.gt_classes, self.num_classes)
            positive, negative = sample_labels(
                classes, self.batch_size_per_image, self.positive_fraction, self.num_classes, generator
            )
            sampled.append(label_rois(item, torch.cat((positive, negative)), classes, matches, target))
            all_classes.append(classes)
            foreground, background = foreground + len(positive), background + len(negative)
        if self.training and has_event_storage():
            number = max(len(sampled), 1)
            put_scalars(
                {"roi_head/num_fg_samples": foreground / number, "roi_head/num_bg_samples": background / number}
            )
        return sampled, all_classes

    def _box_losses(self, predictions: BoxPredictions) -> dict[str, torch.Tensor]:
        """Average the classification loss over all M regions; divide the sum over F of the box loss by M as well."""
        rois, logits, deltas = predictions.rois, predictions.logits, predictions.deltas
        classes = torch.cat([item.gt_classes for item in rois])  # (M,)
        if self.training and has_event_storage():
            put_scalars(classification_accuracy(logits, classes, self.num_classes))
        foreground = (classes < self.num_classes).nonzero().flatten()  # (F,)
        box_loss = box_regression_loss(
            self.box_loss,
            self.box_coder,
            deltas_of_class(deltas[foreground], classes[foreground]),
            predictions.boxes()[foreground],
            torch.cat([item.gt_boxes.tensor for item in rois])[foreground],
            self.smooth_l1_beta,
        )
        return {
            "loss_cls": classification_loss(logits, classes),
            "loss_box_reg": box_loss / max(len(classes), 1) * self.box_loss_weight,
        }

    def _add_mask_losses(self, levels: list[torch.Tensor], targets: list[Instances], training: ROITraining) -> None:
        if self.train_on_pred_boxes:
            training.rois = training.predictions.refined_rois(self.box_coder, self.num_classes)
        foreground = [
            foreground_with_masks(rois, target, self.num_classes)
            for rois, target in zip(training.rois, targets, strict=True)
        ]
        pooled = self.mask_pooler(levels, [item.proposal_boxes for item in foreground])  # (F, C, P, P)
        losses, training.mask_targets = mask_losses(self.mask_head, pooled, foreground)
        training.mask_rois = foreground
        training.losses.update(losses)
