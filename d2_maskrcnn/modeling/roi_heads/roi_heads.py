"""The region heads: classify and refine each proposal, and give each detection a mask (arXiv:1703.06870, section 3).

Shape shorthand: N images, R proposals of an image, M of all images, F the foreground ones among them, K classes,
C channels, P the pooled size. Class K is the background.
"""

from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import level_names, require
from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.intermediates import active_stages
from d2_maskrcnn.modeling.losses import BOX_LOSSES, box_regression_loss, classification_loss
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.precision import at_least_float32
from d2_maskrcnn.modeling.roi_heads.box_head import BoxPredictor
from d2_maskrcnn.modeling.roi_heads.inference import DetectionSettings, select_detections
from d2_maskrcnn.modeling.roi_heads.mask_head import mask_targets
from d2_maskrcnn.modeling.roi_heads.targets import append_gt, foreground_with_masks, label_rois
from d2_maskrcnn.modeling.sampling import sample_labels
from d2_maskrcnn.modeling.shapes import channels_of
from d2_maskrcnn.modeling.training_events import put_classification_events, put_events
from d2_maskrcnn.ops import ROIPooler
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import build_box_head, build_mask_head
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou


@ROI_HEADS_REGISTRY.register()
class MaskRCNNROIHeads(nn.Module):
    """Box head and, unless switched off, mask head on pooled region features."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        num_classes: int,
        proposal_matcher: Matcher,
        batch_size_per_image: int,
        positive_fraction: float,
        proposalappend_gt: bool,
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
        """Takes built parts.

        Args:
            batch_size_per_image: proposals of an image that enter the losses. positive_fraction: share of objects
                among them.
            proposalappend_gt: whether the annotated boxes are proposals too, in training.
            train_on_pred_boxes: whether the mask head is trained on the refined boxes instead of the proposals.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposalappend_gt = proposalappend_gt
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.box_coder = box_coder
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta
        self.box_loss_weight = box_loss_weight
        self.detection_settings = detection_settings
        self.train_on_pred_boxes = train_on_pred_boxes
        self.mask_pooler = mask_pooler
        self.mask_head: Any = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Reads ``cfg.MODEL.ROI_HEADS``, ``ROI_BOX_HEAD``, ``ROI_MASK_HEAD`` and ``TEST.DETECTIONS_PER_IMAGE``."""
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
            "proposalappend_gt": node.PROPOSAL_APPEND_GT,
            "box_pooler": box_pooler,
            "box_head": box_head,
            "box_predictor": BoxPredictor(box_head.output_shape, node.NUM_CLASSES, box.CLS_AGNOSTIC_BBOX_REG),
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
        """Losses where there are annotations, detections otherwise.

        Args:
            images: not used; Detectron2's region heads have it. features: name -> (N, C, Hi, Wi).
            proposals: for each image Instances with ``proposal_boxes`` and ``objectness_logits``.
            targets: for each image ``gt_boxes``, ``gt_classes`` and, with a mask head, ``gt_masks`` in the
                network's frame.

        Returns:
            instances: with targets the sampled proposals, without them the detections, whose ``pred_masks`` (n, 1,
            2P, 2P) are probabilities inside each box.
            losses: ``loss_cls``, ``loss_box_reg``, ``loss_mask``; empty without targets.
        """
        levels = self._levels(features)
        if targets is None:
            detections = self._detect(levels, proposals)
            return self._add_masks(levels, detections), {}
        rois = self._sample_proposals(proposals, targets)
        logits, deltas = self._predict_boxes(levels, rois)
        losses = self._box_losses(logits, deltas, rois)
        if self.mask_head is not None:
            if self.train_on_pred_boxes:
                rois = self._with_predicted_boxes(deltas, rois)
            losses.update(self._mask_losses(levels, rois, targets))
        return rois, losses

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Adds ``pred_masks`` to instances that have ``pred_boxes`` (network's frame) and ``pred_classes``."""
        return self._add_masks(self._levels(features), instances)

    def _levels(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [features[name] for name in self.in_features]

    def _predict_boxes(self, levels: list[torch.Tensor], rois: list[Instances]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (M, K + 1) and deltas (M, 4K or 4), float32."""
        boxes = [item.proposal_boxes for item in rois]
        pooled = self.box_pooler(levels, boxes)
        logits, deltas = (at_least_float32(x) for x in self.box_predictor(self.box_head(pooled)))
        if (stages := active_stages()) is not None:
            roi_levels = self.box_pooler.assign_levels(_concatenated(boxes))
            stages.record(rois=rois, roi_levels=roi_levels, box_pooled=pooled, class_logits=logits, box_deltas=deltas)
        return logits, deltas

    def _detect(self, levels: list[torch.Tensor], proposals: list[Instances]) -> list[Instances]:
        logits, deltas = self._predict_boxes(levels, proposals)
        boxes = self.box_coder.decode(deltas, _joined_boxes(proposals)).unflatten(1, (-1, 4))  # (M, K or 1, 4)
        numbers = [len(item) for item in proposals]
        sizes = [item.image_size for item in proposals]
        probabilities = list(logits.softmax(dim=1).split(numbers))
        return select_detections(probabilities, list(boxes.split(numbers)), sizes, self.detection_settings)

    def _add_masks(self, levels: list[torch.Tensor], instances: list[Instances]) -> list[Instances]:
        if self.mask_head is not None and self.mask_pooler is not None and instances:
            pooled = self._pool_for_masks(levels, [item.pred_boxes for item in instances])
            classes = torch.cat([item.pred_classes for item in instances])
            masks = self.mask_head.probabilities(pooled, classes)
            for item, item_masks in zip(instances, masks.split([len(item) for item in instances]), strict=True):
                item.pred_masks = item_masks
        if (stages := active_stages()) is not None:
            stages.record(detections=instances)
        return instances

    def _pool_for_masks(self, levels: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        assert self.mask_pooler is not None
        pooled = self.mask_pooler(levels, boxes)
        if (stages := active_stages()) is not None:
            stages.record(mask_levels=self.mask_pooler.assign_levels(_concatenated(boxes)), mask_pooled=pooled)
        return pooled

    @torch.no_grad()
    def _sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """A random part of each image's proposals, with ``gt_classes``, ``gt_boxes`` and ``gt_index`` (annotation
        matched).
        """
        stages = active_stages()
        if stages is not None:
            stages.record(roi_labels=[])
        sampled, foreground, background = [], 0, 0
        for item, target in zip(proposals, targets, strict=True):
            if self.proposalappend_gt:
                item = append_gt(item, target)
            matches, labels = self.proposal_matcher(pairwise_iou(target.gt_boxes, item.proposal_boxes))
            classes = self._classes(matches, labels, target.gt_classes)
            positive, negative = sample_labels(
                classes, self.batch_size_per_image, self.positive_fraction, background=self.num_classes
            )
            sampled.append(label_rois(item, torch.cat((positive, negative)), classes, matches, target))
            foreground += len(positive)
            background += len(negative)
            if stages is not None:
                stages.append(roi_labels=classes)
        number = max(len(sampled), 1)
        put_events({"roi_head/num_fg_samples": foreground / number, "roi_head/num_bg_samples": background / number})
        return sampled

    def _classes(self, matches: torch.Tensor, labels: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """(R,) class of each proposal: its annotation's where it is an object, K for background, -1 for neither."""
        if len(gt_classes) == 0:
            return torch.full_like(matches, self.num_classes)
        classes = gt_classes[matches]
        classes[labels == 0] = self.num_classes
        classes[labels == -1] = -1
        return classes

    def _box_losses(self, logits: torch.Tensor, deltas: torch.Tensor, rois: list[Instances]) -> dict[str, torch.Tensor]:
        """``loss_cls`` is a mean over all M; ``loss_box_reg`` a sum over the F foreground ones, divided by M as
        well.
        """
        classes = torch.cat([item.gt_classes for item in rois])
        put_classification_events(logits, classes, self.num_classes)
        foreground = (classes < self.num_classes).nonzero().flatten()  # (F,)
        box_loss = box_regression_loss(
            self.box_loss,
            self.box_coder,
            self._deltas_of_class(deltas[foreground], classes[foreground]),
            _joined_boxes(rois)[foreground],
            torch.cat([item.gt_boxes.tensor for item in rois])[foreground],
            self.smooth_l1_beta,
        )
        return {
            "loss_cls": classification_loss(logits, classes),
            "loss_box_reg": box_loss / max(len(classes), 1) * self.box_loss_weight,
        }

    @staticmethod
    def _deltas_of_class(deltas: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """(F, 4K or 4), (F,) -> (F, 4)."""
        if deltas.shape[1] == 4:
            return deltas
        return deltas.unflatten(1, (-1, 4))[torch.arange(len(classes), device=classes.device), classes]

    @torch.no_grad()
    def _with_predicted_boxes(self, deltas: torch.Tensor, rois: list[Instances]) -> list[Instances]:
        """The same regions, their boxes refined by the deltas of their annotated class (not clipped)."""
        refined = []
        for item, item_deltas in zip(rois, deltas.split([len(item) for item in rois]), strict=True):
            of_class = self._deltas_of_class(item_deltas, item.gt_classes.clamp(max=self.num_classes - 1))
            boxes = Boxes(self.box_coder.decode(of_class, item.proposal_boxes.tensor))
            fields = {**item.get_fields(), "proposal_boxes": boxes}
            refined.append(Instances(item.image_size, **fields))
        return refined

    def _mask_losses(
        self, levels: list[torch.Tensor], rois: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        assert self.mask_head is not None
        foreground = [foreground_with_masks(item, t, self.num_classes) for item, t in zip(rois, targets, strict=True)]
        pooled = self._pool_for_masks(levels, [item.proposal_boxes for item in foreground])
        classes = torch.cat([item.gt_classes for item in foreground])
        wanted = mask_targets(foreground, 2 * pooled.shape[-1])
        if (stages := active_stages()) is not None:
            stages.record(mask_targets=wanted)
        losses: dict[str, torch.Tensor] = self.mask_head.losses(pooled, classes, wanted)
        return losses


def _joined_boxes(instances: list[Instances]) -> torch.Tensor:
    """(M, 4) proposal boxes of all images."""
    return torch.cat([item.proposal_boxes.tensor for item in instances])


def _concatenated(boxes: list[Boxes]) -> torch.Tensor:
    """(M, 4) boxes of all images."""
    return torch.cat([item.tensor for item in boxes])
