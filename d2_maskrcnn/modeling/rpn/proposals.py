"""Proposals from the RPN's logits and deltas (arXiv:1506.01497, section 3.3): top-scored, refined, clipped, suppressed.

Shape shorthand: N images, Ri anchors of level i, k = min(pre_nms_topk, Ri), K the sum of k over all levels.
"""

from dataclasses import dataclass, field

import torch

from d2_maskrcnn.modeling.box_coding import BoxCoder, clip_boxes
from d2_maskrcnn.modeling.sampling import indices_of_ranks
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances


@dataclass(frozen=True)
class ProposalSettings:
    """Settings of the proposal selection.

    Attributes:
        pre_nms_topk: anchors per level and image that are refined, those with the highest logits.
        post_nms_topk: maximum number of proposals per image.
        nms_thresh: IoU in [0, 1] above which the lower-scored of two boxes of the same level is dropped.
        min_size: pixels that both sides of a box must exceed.
    """

    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    min_size: float


@dataclass
class ProposalSelection:
    """Proposals of N images, and the candidates that they were selected from.

    Attributes:
        anchors: per level (N, k) int64, indices of the level's top-scored anchors, best first.
        logits: per level (N, k), the logits of these anchors.
        boxes: per level (N, k, 4), these anchors refined by their deltas, not yet clipped.
        clipped: per image the indices into its K candidates of those that are finite and large enough once clipped.
        kept: per image the indices into ``clipped`` of the proposals, best first.
        proposals: per image Instances with ``proposal_boxes`` (clipped to the image) and ``objectness_logits``.
    """

    anchors: list[torch.Tensor]
    logits: list[torch.Tensor]
    boxes: list[torch.Tensor]
    clipped: list[torch.Tensor] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    proposals: list[Instances] = field(default_factory=list)

    def levels(self) -> torch.Tensor:
        """Return the level index (K,) of each candidate of an image."""
        device = self.logits[0].device
        return torch.cat([torch.full((x.shape[1],), i, device=device) for i, x in enumerate(self.logits)])


@torch.no_grad()
def select_proposals(
    anchors: list[torch.Tensor],
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    coder: BoxCoder,
    settings: ProposalSettings,
    training: bool,
) -> ProposalSelection:
    """Select the proposals of each image, best first.

    Args:
        anchors: per level (Ri, 4). logits: per level (N, Ri). deltas: per level (N, Ri, 4).
        image_sizes: (height, width) of each image without padding.
        training: whether non-finite boxes and logits are an error; otherwise they are dropped.

    Raises:
        FloatingPointError: a box or logit is infinite or NaN in training.
    """
    selection = refine_top_anchors(anchors, logits, deltas, coder, settings.pre_nms_topk)
    return _suppress(selection, image_sizes, settings, training)


@torch.no_grad()
def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Select the proposals of each image from decoded boxes, under Detectron2's name and arguments.

    Args:
        proposals: per level (N, Ri, 4), not clipped. pred_objectness_logits: per level (N, Ri).
        nms_thresh, pre_nms_topk, post_nms_topk, min_box_size: see :class:`ProposalSettings`.
        image_sizes, training: see :func:`select_proposals`, also for the errors.
    """
    tops = [logits.topk(min(pre_nms_topk, logits.shape[1]), dim=1) for logits in pred_objectness_logits]
    boxes = [x.gather(1, top.indices[:, :, None].expand(-1, -1, 4)) for x, top in zip(proposals, tops, strict=True)]
    selection = ProposalSelection([top.indices for top in tops], [top.values for top in tops], boxes)
    settings = ProposalSettings(pre_nms_topk, post_nms_topk, nms_thresh, min_box_size)
    return _suppress(selection, image_sizes, settings, training).proposals


def _suppress(
    selection: ProposalSelection, image_sizes: list[tuple[int, int]], settings: ProposalSettings, training: bool
) -> ProposalSelection:
    """Clip the refined boxes, drop non-finite and small ones, and suppress those that overlap better ones."""
    boxes, scores = torch.cat(selection.boxes, dim=1), torch.cat(selection.logits, dim=1)  # (N, K, 4), (N, K)
    levels = selection.levels()
    finite = boxes.isfinite().all(dim=2) & scores.isfinite()  # (N, K)
    clipped_boxes = [Boxes(clip_boxes(boxes[index], size)) for index, size in enumerate(image_sizes)]
    valid = [finite[index] & item.nonempty(settings.min_size) for index, item in enumerate(clipped_boxes)]  # (K,) each
    # One wait for the device, where nonzero would wait for every image.
    non_finite, *counts = torch.stack([mask.count_nonzero() for mask in (~finite, *valid)]).tolist()
    if training and non_finite:
        raise FloatingPointError("The RPN predicts infinite or NaN boxes or scores: the training has diverged.")
    for index, image_size in enumerate(image_sizes):
        clipped = indices_of_ranks(valid[index], torch.arange(counts[index], device=boxes.device))
        image_boxes, image_scores = clipped_boxes[index][clipped], scores[index][clipped]
        kept = batched_nms(image_boxes.tensor.float(), image_scores.float(), levels[clipped], settings.nms_thresh)
        kept = kept[: settings.post_nms_topk]
        selection.clipped.append(clipped)
        selection.kept.append(kept)
        selection.proposals.append(
            Instances(image_size, proposal_boxes=image_boxes[kept], objectness_logits=image_scores[kept])
        )
    return selection


def refine_top_anchors(
    anchors: list[torch.Tensor], logits: list[torch.Tensor], deltas: list[torch.Tensor], coder: BoxCoder, topk: int
) -> ProposalSelection:
    """Decode the ``topk`` top-scored anchors of each level and image: the first step of :func:`select_proposals`."""
    top_anchors, top_logits, top_boxes = [], [], []
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
        best, index = level_logits.topk(min(topk, level_logits.shape[1]), dim=1)  # each (N, k)
        top_deltas = level_deltas.gather(1, index.unsqueeze(2).expand(-1, -1, 4))  # (N, k, 4)
        top_boxes.append(coder.decode(top_deltas, level_anchors[index]))
        top_logits.append(best)
        top_anchors.append(index)
    return ProposalSelection(top_anchors, top_logits, top_boxes)
