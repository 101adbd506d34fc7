"""Base class of ROI heads: the sampling of proposals for training (arXiv:1504.08083, section 2.3)."""

import itertools
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.modeling.losses import put_scalars
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.roi_heads.targets import append_gt, label_rois, proposal_classes
from d2_maskrcnn.modeling.sampling import sample_batch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances, pairwise_iou
from detectron2.utils.events import has_event_storage


class ROIHeads(nn.Module):
    """Base class of ROI heads: sample the proposals that enter the losses.

    Args:
        num_classes: K, without the background.
        batch_size_per_image: proposals per image that enter the losses. positive_fraction: maximum share of objects
            among them, in [0, 1].
        proposal_matcher: labels proposals by their IoU with the ground truth.
        proposal_append_gt: whether ground-truth boxes are added to the proposals in training.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any) -> dict[str, Any]:
        """Read ``cfg.MODEL.ROI_HEADS``."""
        node = cfg.MODEL.ROI_HEADS
        return {
            "num_classes": node.NUM_CLASSES,
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "proposal_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS),
            "proposal_append_gt": node.PROPOSAL_APPEND_GT,
        }

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Sample the proposals of each image; add the fields ``gt_*`` of the ground truth that each one matches.

        Args:
            proposals: per image ``proposal_boxes`` and ``objectness_logits``. targets: per image ``gt_boxes``,
                ``gt_classes`` and any other fields.

        Returns:
            new Instances; in the background ``gt_classes`` is ``num_classes`` and the other fields are meaningless.
            Images without ground truth have only ``gt_classes``.
        """
        sampled, *_ = self._label_and_sample(proposals, targets, None)
        for item, target in zip(sampled, targets, strict=True):
            for name, value in target.get_fields().items():
                if name.startswith("gt_") and not item.has(name) and len(target) > 0:
                    item.set(name, value[item.gt_index])
        return sampled

    @torch.no_grad()
    def _label_and_sample(
        self, proposals: list[Instances], targets: list[Instances], generator: torch.Generator | None
    ) -> tuple[list[Instances], list[torch.Tensor], list[int]]:
        """Sample the proposals of each image.

        Returns:
            the sampled proposals of each image with their ground truth, foreground first; the classes of all proposals;
            the number of foreground regions of each image.
        """
        if self.proposal_append_gt:
            proposals = [append_gt(item, target) for item, target in zip(proposals, targets, strict=True)]
        all_matches, all_classes = [], []
        for item, target in zip(proposals, targets, strict=True):
            matches, labels = self.proposal_matcher(pairwise_iou(target.gt_boxes, item.proposal_boxes))
            all_matches.append(matches)
            all_classes.append(proposal_classes(matches, labels, target.gt_classes, self.num_classes))
        samples = sample_batch(
            all_classes, self.batch_size_per_image, self.positive_fraction, self.num_classes, generator
        )
        indices = [torch.cat(each) for each in samples]  # foreground first
        images = zip(proposals, indices, all_classes, all_matches, targets, strict=True)
        sampled = list(itertools.starmap(label_rois, images))
        foreground = [len(positive) for positive, _ in samples]
        if self.training and has_event_storage():
            number, background = max(len(sampled), 1), sum(len(negative) for _, negative in samples)
            put_scalars(
                {"roi_head/num_fg_samples": sum(foreground) / number, "roi_head/num_bg_samples": background / number}
            )
        return sampled, all_classes, foreground
