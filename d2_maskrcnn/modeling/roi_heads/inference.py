"""From the box predictor's logits and deltas to detections (arXiv:1504.08083, section 2.4)."""

from dataclasses import dataclass

import torch

from d2_maskrcnn.modeling.box_coding import clip_boxes
from d2_maskrcnn.modeling.intermediates import active_stages
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances


@dataclass(frozen=True)
class DetectionSettings:
    """How detections are chosen.

    score_thresh: class probability that must be exceeded. nms_thresh: IoU above which the lower-scored one of the
    same class is dropped. topk: detections of an image at most.
    """

    score_thresh: float
    nms_thresh: float
    topk: int


def select_detections(
    probabilities: list[torch.Tensor],
    boxes: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    settings: DetectionSettings,
) -> list[Instances]:
    """Detections of each image, best first.

    Args:
        probabilities: for each image (R, K + 1), the background last. boxes: for each image (R, K, 4), or (R, 1,
            4) when class-agnostic, not clipped.
        image_sizes: (height, width) of each image.

    Returns:
        for each image Instances with ``pred_boxes`` (clipped), ``scores``, ``pred_classes``. Regions with an infinite
        box or score are dropped.
    """
    if (stages := active_stages()) is not None:
        stages.record(class_probs=probabilities, decoded_boxes=boxes, candidates=[], kept_candidates=[])
    return [_select(p, b, size, settings) for p, b, size in zip(probabilities, boxes, image_sizes, strict=True)]


def _select(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], settings: DetectionSettings
) -> Instances:
    scores = probabilities[:, :-1]  # (R, K)
    valid = boxes.isfinite().flatten(1).all(1) & probabilities.isfinite().all(1)  # (R,)
    roi, classes = ((scores > settings.score_thresh) & valid[:, None]).nonzero(as_tuple=True)  # each (Q,)
    candidate_boxes = Boxes(clip_boxes(boxes[roi, 0 if boxes.shape[1] == 1 else classes], image_size))
    scores = scores[roi, classes]
    keep = batched_nms(candidate_boxes.tensor.float(), scores.float(), classes, settings.nms_thresh)
    if settings.topk >= 0:
        keep = keep[: settings.topk]
    if (stages := active_stages()) is not None:
        candidates = Instances(image_size, pred_boxes=candidate_boxes, scores=scores, pred_classes=classes, roi=roi)
        stages.append(candidates=candidates, kept_candidates=keep)
    return Instances(image_size, pred_boxes=candidate_boxes[keep], scores=scores[keep], pred_classes=classes[keep])
