"""ROI heads with the methods that programs for Detectron2 override, from this plugin's parts."""

from typing import Any

import torch

from d2_maskrcnn.modeling.roi_heads.mask_head import add_masks, mask_losses
from d2_maskrcnn.modeling.roi_heads.roi_heads import MaskRCNNROIHeads
from detectron2.structures import Boxes, ImageList, Instances

Losses = dict[str, torch.Tensor]


class StandardROIHeads(MaskRCNNROIHeads):
    """Compute what :class:`MaskRCNNROIHeads` does, by methods that subclasses may override.

    The proposals are sampled first (``label_and_sample_proposals``), then ``_forward_box`` and ``_forward_mask`` return
    losses if their instances have ground truth, and detections otherwise. The box predictor needs no more than
    Detectron2's methods: a call, ``losses`` and ``inference``.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], Losses]:
        """Return the sampled proposals and the losses if ground truth is given, otherwise the detections."""
        if targets is None:
            return self.forward_with_given_boxes(features, self._forward_box(features, proposals)), {}
        rois = self.label_and_sample_proposals(proposals, targets)
        # In this order: the mask head may be trained on the boxes that the box head refines.
        losses = self._forward_box(features, rois)
        return rois, {**losses, **self._forward_mask(features, rois)}

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add ``pred_masks`` to instances that have ``pred_boxes`` and ``pred_classes``, and return them."""
        return self._forward_mask(features, instances)

    def _forward_box(self, features: dict[str, torch.Tensor], proposals: list[Instances]) -> Any:
        levels = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(levels, [item.proposal_boxes for item in proposals])  # (M, C, P, P)
        predictions = self.box_predictor(self.box_head(pooled))
        if not _has_ground_truth(proposals):
            return self.box_predictor.inference(predictions, proposals)[0]
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                boxes = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for item, item_boxes in zip(proposals, boxes, strict=True):
                item.proposal_boxes = Boxes(item_boxes)
        return losses

    def _forward_mask(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> Any:
        training = _has_ground_truth(instances)
        if not self.mask_on:
            return {} if training else instances
        if training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        pooled: Any = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is not None:
            boxes = [item.proposal_boxes if training else item.pred_boxes for item in instances]
            pooled = self.mask_pooler(list(pooled.values()), boxes)  # (M, C, P, P)
        if training:
            return mask_losses(self.mask_head, pooled, instances)[0]
        if instances:
            add_masks(self.mask_head, pooled, instances)
        return instances


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Select the proposals of each image whose ``gt_classes`` is neither ``bg_label`` nor -1.

    Returns:
        the foreground of each image, and masks (R,) bool of the proposals that were selected.
    """
    masks = [(item.gt_classes != -1) & (item.gt_classes != bg_label) for item in proposals]
    return [item[mask] for item, mask in zip(proposals, masks, strict=True)], masks


def _has_ground_truth(instances: list[Instances]) -> bool:
    return any(item.has("gt_classes") for item in instances)
