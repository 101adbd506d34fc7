"""Training targets of the RPN: the ground truth that each anchor is compared with.

Shape shorthand: R anchors of all levels, G ground-truth boxes, S sampled anchors, F objects among them. Boxes are XYXY
in pixels of the network's input image.
"""

from dataclasses import dataclass

import torch

from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.sampling import Samples
from detectron2.structures import Boxes, Instances, pairwise_iou


@dataclass
class AnchorLabels:
    """Training labels of the anchors of an image.

    Attributes:
        labels: (R,) int8: 1 object, 0 background, -1 ignored. sampled: the same, -1 for anchors not sampled.
        matches: (R,) int64, index of the ground-truth box with the highest IoU.
        gt_boxes: (G, 4).
        objects: (F,) int64, indices of the sampled objects, ascending. used: (S,) of all sampled anchors, ascending.
    """

    labels: torch.Tensor
    sampled: torch.Tensor
    matches: torch.Tensor
    gt_boxes: torch.Tensor
    objects: torch.Tensor
    used: torch.Tensor

    def add_samples(self, samples: Samples) -> None:
        """Set ``sampled``, ``objects`` and ``used`` from the indices of the sampled objects and background."""
        positive, negative = samples
        self.objects, self.used = positive.sort().values, torch.cat(samples).sort().values
        # index_fill_ gets the number with the kernel; an assignment would copy it to the device and wait.
        self.sampled.index_fill_(0, positive, 1).index_fill_(0, negative, 0)

    def object_boxes(self) -> torch.Tensor:
        """Return the ground-truth boxes (F, 4) of the sampled objects, in the anchors' order."""
        return self.gt_boxes[self.matches[self.objects]]


@torch.no_grad()
def match_anchors(
    anchors: torch.Tensor, instances: Instances, matcher: Matcher, boundary_thresh: float = -1
) -> AnchorLabels:
    """Label the anchors of an image by their IoU with its ground-truth boxes, before any is sampled.

    Args:
        anchors: (R, 4). instances: ground truth with ``gt_boxes``.
        boundary_thresh: anchors that extend beyond the image by more than this many pixels are ignored; a
            negative number ignores none of them.
    """
    matches, labels = matcher(pairwise_iou(instances.gt_boxes, Boxes(anchors)))
    if boundary_thresh >= 0:
        inside = Boxes(anchors).inside_box(instances.image_size, boundary_thresh)
        labels[~inside] = -1
    none = matches[:0]
    return AnchorLabels(labels, torch.full_like(labels, -1), matches, instances.gt_boxes.tensor, none, none)
