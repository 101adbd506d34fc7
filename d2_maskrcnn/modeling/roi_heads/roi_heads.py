"""ROI heads: classify and refine proposals, and predict a mask per detection (arXiv:1703.06870, section 3).

Shape shorthand: N images, R regions of an image, M of all images, F foreground regions among them, K classes (class K
is the background), C channels, P the pooled size. Boxes are XYXY in pixels of the network's input image.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import level_names
from d2_maskrcnn.modeling.backbone.conv_norm import channels_of
from d2_maskrcnn.modeling.box_coding import at_least_float32
from d2_maskrcnn.modeling.roi_heads.base import ROIHeads
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictions, BoxPredictor
from d2_maskrcnn.modeling.roi_heads.inference import DetectionSelection
from d2_maskrcnn.modeling.roi_heads.mask_head import add_masks, mask_losses
from d2_maskrcnn.modeling.roi_heads.targets import foreground_with_masks
from d2_maskrcnn.ops import ROIPooler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from detectron2.structures import ImageList, Instances


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
class MaskRCNNROIHeads(ROIHeads):
    """Apply the box head and, unless switched off, the mask head to pooled region features.

    Args:
        box_in_features: names of the feature levels to pool from, finest first; ``mask_in_features`` are the same.
        box_predictor: also has the losses of boxes and classes, and the selection of detections.
        mask_pooler, mask_head: None for boxes only.
        train_on_pred_boxes: whether the mask head is trained on the refined boxes instead of the proposals.
        **kwargs: arguments of :class:`ROIHeads`.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_pooler: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: Sequence[str] | None = None,
        mask_pooler: nn.Module | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.box_in_features = self.in_features = tuple(box_in_features)
        self.mask_in_features = self.in_features if mask_in_features is None else tuple(mask_in_features)
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor: Any = box_predictor
        self.mask_pooler: Any = mask_pooler
        self.mask_head: Any = mask_head
        self.mask_on = mask_head is not None
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``cfg.MODEL.ROI_HEADS``, ``ROI_BOX_HEAD``, ``ROI_MASK_HEAD`` and ``TEST.DETECTIONS_PER_IMAGE``."""
        parts = {**super().from_config(cfg), "train_on_pred_boxes": cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES}
        for build in (cls._init_box_head, cls._init_mask_head):
            # Subclasses that override one by a method of the object call it themselves, after the constructor.
            parts.update(build(cfg, input_shape) if inspect.ismethod(build) else {})
        return parts

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features = level_names(cfg, "MODEL.ROI_HEADS.IN_FEATURES", input_shape)
        pooler = ROIPooler.from_cfg(cfg, "MODEL.ROI_BOX_HEAD", input_shape, in_features)
        box_head: Any = build_box_head(cfg, _pooled_shape(pooler, input_shape[in_features[0]]))
        predictor = BoxPredictor(cfg, box_head.output_shape)
        return {
            "box_in_features": in_features,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": predictor,
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        if not cfg.MODEL.MASK_ON:
            return {}
        in_features = level_names(cfg, "MODEL.ROI_HEADS.IN_FEATURES", input_shape)
        pooler = ROIPooler.from_cfg(cfg, "MODEL.ROI_MASK_HEAD", input_shape, in_features)
        mask_head = build_mask_head(cfg, _pooled_shape(pooler, input_shape[in_features[0]]))
        return {"mask_in_features": in_features, "mask_pooler": pooler, "mask_head": mask_head}

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
        selection = self.box_predictor.select((predictions.logits, predictions.deltas), proposals)
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
        rois, classes, foreground = self._label_and_sample(proposals, targets, generator)
        predictions = self._predict_boxes(levels, rois)
        losses = self.box_predictor.losses((predictions.logits, predictions.deltas), rois)
        training = ROITraining(classes, predictions, rois, losses)
        if self.mask_head is not None:
            self._add_mask_losses(levels, targets, foreground, training)
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

    def _add_mask_losses(
        self, levels: list[torch.Tensor], targets: list[Instances], counts: list[int], training: ROITraining
    ) -> None:
        if self.train_on_pred_boxes:
            training.rois = training.predictions.refined_rois(self.box_predictor.box2box_transform, self.num_classes)
        foreground = foreground_with_masks(training.rois, targets, counts)
        pooled = self.mask_pooler(levels, [item.proposal_boxes for item in foreground])  # (F, C, P, P)
        losses, training.mask_targets = mask_losses(self.mask_head, pooled, foreground)
        training.mask_rois = foreground
        training.losses.update(losses)


def _pooled_shape(pooler: ROIPooler, level: ShapeSpec) -> ShapeSpec:
    height, width = pooler.output_size
    return ShapeSpec(channels=channels_of(level), height=height, width=width)
