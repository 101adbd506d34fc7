"""From the RPN's logits and deltas to proposals (arXiv:1506.01497, section 3.3): top-scored, refined, clipped,
suppressed.
"""

from dataclasses import dataclass

import torch

from d2_maskrcnn.modeling.box_coding import BoxCoder, clip_boxes
from d2_maskrcnn.modeling.intermediates import Stages, active_stages
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances


@dataclass(frozen=True)
class ProposalSettings:
    """How proposals are chosen.

    pre_nms_topk: anchors of each level and image that are refined. post_nms_topk: proposals of each image that
        are kept.
    nms_thresh: IoU above which the lower-scored one of the same level is dropped. min_size: pixels that both sides
        must exceed.
    """

    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    min_size: float


@dataclass
class _Candidates:
    """Top-scored anchors of all images (N) and levels; k differs by level and the levels are joined to K."""

    boxes: torch.Tensor  # (N, K, 4)
    logits: torch.Tensor  # (N, K)
    levels: torch.Tensor  # (K,)
    anchors: torch.Tensor  # (N, K), index into the level's anchors


@torch.no_grad()
def select_proposals(
    anchors: list[torch.Tensor],
    logits: list[torch.Tensor],
    deltas: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    coder: BoxCoder,
    settings: ProposalSettings,
    training: bool,
) -> list[Instances]:
    """Proposals of each image, best first.

    Only the ``pre_nms_topk`` anchors of a level are decoded, not all of them.

    Args:
        anchors: for each level (Ri, 4). logits: for each level (N, Ri). deltas: for each level (N, Ri, 4).
        image_sizes: (height, width) of each image without padding.

    Returns:
        for each image Instances with ``proposal_boxes`` (clipped to the image) and ``objectness_logits``.

    Raises:
        FloatingPointError: in training, where a box or a score is infinite or not a number. Otherwise such ones are
            dropped.
    """
    candidates = _decode_top(anchors, logits, deltas, coder, settings.pre_nms_topk)
    valid = candidates.boxes.isfinite().all(dim=2) & candidates.logits.isfinite()  # (N, K)
    if training and not bool(valid.all()):
        raise FloatingPointError("The RPN's boxes or scores are infinite or not numbers: the training has diverged.")
    stages = active_stages()
    if stages is not None:
        stages.record(clipped_proposals=[], proposals=[])
    return [
        _suppress(candidates, index, valid[index], image_size, settings, stages)
        for index, image_size in enumerate(image_sizes)
    ]


def _decode_top(
    anchors: list[torch.Tensor], logits: list[torch.Tensor], deltas: list[torch.Tensor], coder: BoxCoder, topk: int
) -> _Candidates:
    top_logits, top_anchors, top_boxes = [], [], []
    for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
        best, index = level_logits.topk(min(topk, level_logits.shape[1]), dim=1)  # each (N, k)
        chosen_deltas = level_deltas.gather(1, index.unsqueeze(2).expand(-1, -1, 4))  # (N, k, 4)
        top_boxes.append(coder.decode(chosen_deltas, level_anchors[index]))
        top_logits.append(best)
        top_anchors.append(index)
    if (stages := active_stages()) is not None:
        stages.record(topk_anchors=top_anchors, topk_boxes=top_boxes)
    device = logits[0].device
    levels = [torch.full((index.shape[1],), i, dtype=torch.int64, device=device) for i, index in enumerate(top_anchors)]
    return _Candidates(
        torch.cat(top_boxes, dim=1), torch.cat(top_logits, dim=1), torch.cat(levels), torch.cat(top_anchors, dim=1)
    )


def _suppress(
    candidates: _Candidates,
    index: int,
    valid: torch.Tensor,
    image_size: tuple[int, int],
    settings: ProposalSettings,
    stages: Stages | None,
) -> Instances:
    boxes = Boxes(clip_boxes(candidates.boxes[index], image_size))
    usable = (valid & boxes.nonempty(settings.min_size)).nonzero().flatten()
    boxes, logits, levels = boxes[usable], candidates.logits[index][usable], candidates.levels[usable]
    keep = batched_nms(boxes.tensor.float(), logits.float(), levels, settings.nms_thresh)[: settings.post_nms_topk]
    proposals = Instances(image_size, proposal_boxes=boxes[keep], objectness_logits=logits[keep])
    if stages is not None:
        clipped = Instances(
            image_size,
            proposal_boxes=boxes,
            objectness_logits=logits,
            level=levels,
            anchor=candidates.anchors[index][usable],
        )
        stages.append(clipped_proposals=clipped, proposals=clipped[keep])
    return proposals
