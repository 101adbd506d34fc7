"""Detections from the box predictor's outputs (arXiv:1504.08083, section 2.4), and their scaling to the output image.

Shape shorthand: R regions of an image, K classes.
"""

from dataclasses import dataclass, field

import torch

from d2_maskrcnn.modeling.box_coding import clip_boxes
from d2_maskrcnn.structures.mask_instances import MaskInstances
from d2_maskrcnn.structures.mask_pasting import MASK_THRESHOLD
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of the selection of detections.

    Attributes:
        score_thresh: class probability in [0, 1] that a detection must exceed.
        nms_thresh: IoU in [0, 1] above which the lower-scored of two boxes of the same class is dropped.
        topk: maximum number of detections per image; negative for no limit.
    """

    score_thresh: float
    nms_thresh: float
    topk: int


@dataclass
class DetectionSelection:
    """Detections of N images, and the candidates that they were selected from.

    Attributes:
        class_probs: per image (R, K + 1). decoded_boxes: per image (R, K or 1, 4), before clipping.
        candidates: per image Instances of the boxes that exceed the score threshold, clipped: ``pred_boxes``,
            ``scores``, ``pred_classes`` and ``roi``, the index of the region.
        kept: per image the indices into ``candidates`` of the detections, best first.
        detections: per image Instances with ``pred_boxes``, ``scores`` and ``pred_classes``.
    """

    class_probs: list[torch.Tensor]
    decoded_boxes: list[torch.Tensor]
    candidates: list[Instances] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    detections: list[Instances] = field(default_factory=list)

    def regions(self) -> list[torch.Tensor]:
        """Return the index of the region of each detection, (n,) int64 per image."""
        return [item.roi[kept] for item, kept in zip(self.candidates, self.kept, strict=True)]


def select_detections(
    class_probs: list[torch.Tensor],
    decoded_boxes: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    settings: DetectionSettings,
) -> DetectionSelection:
    """Select the detections of each image, best first.

    Args:
        class_probs: per image (R, K + 1), the background last.
        decoded_boxes: per image (R, K, 4), or (R, 1, 4) if class-agnostic, not clipped.
        image_sizes: (height, width) of each image without padding.

    Returns:
        the detections; regions with an infinite or NaN box or probability have none.
    """
    selection = DetectionSelection(class_probs, decoded_boxes)
    for probs, boxes, image_size in zip(class_probs, decoded_boxes, image_sizes, strict=True):
        candidates = _candidates(probs, boxes, image_size, settings.score_thresh)
        kept = batched_nms(
            candidates.pred_boxes.tensor.float(),
            candidates.scores.float(),
            candidates.pred_classes,
            settings.nms_thresh,
        )
        kept = kept[: settings.topk] if settings.topk >= 0 else kept
        fields = {name: candidates.get(name)[kept] for name in ("pred_boxes", "scores", "pred_classes")}
        selection.candidates.append(candidates)
        selection.kept.append(kept)
        selection.detections.append(Instances(image_size, **fields))
    return selection


def fast_rcnn_inference(
    boxes: list[torch.Tensor],
    scores: list[torch.Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Select the detections of each image, under Detectron2's name and arguments.

    Args:
        boxes: per image (R, 4K), or (R, 4) if class-agnostic, not clipped. scores: per image (R, K + 1), see
            :func:`select_detections`. image_shapes: (height, width) of each image without padding.
        score_thresh, nms_thresh, topk_per_image: see :class:`DetectionSettings`.

    Returns:
        the detections, and the indices of the regions that they come from.
    """
    decoded = [item.unflatten(1, (-1, 4)) for item in boxes]
    settings = DetectionSettings(score_thresh, nms_thresh, topk_per_image)
    selection = select_detections(scores, decoded, image_shapes, settings)
    return selection.detections, selection.regions()


def fast_rcnn_inference_single_image(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, torch.Tensor]:
    """Select the detections of one image; see :func:`fast_rcnn_inference`."""
    detections, regions = fast_rcnn_inference(
        [boxes], [scores], [image_shape], score_thresh, nms_thresh, topk_per_image
    )
    return detections[0], regions[0]


def _candidates(probs: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], thresh: float) -> Instances:
    """Select the pairs of region and class above the score threshold. Args: probs (R, K + 1), boxes (R, K or 1, 4)."""
    scores = probs[:, :-1]  # (R, K)
    finite = boxes.isfinite().flatten(1).all(1) & probs.isfinite().all(1)  # (R,)
    roi, classes = ((scores > thresh) & finite[:, None]).nonzero(as_tuple=True)  # each (Q,)
    clipped = clip_boxes(boxes[roi, 0 if boxes.shape[1] == 1 else classes], image_size)
    return Instances(image_size, pred_boxes=Boxes(clipped), scores=scores[roi, classes], pred_classes=classes, roi=roi)


def postprocess(instances: Instances, height: int, width: int, mask_threshold: float = MASK_THRESHOLD) -> Instances:
    """Scale detections to an output image.

    Args:
        instances: ``image_size`` is the frame of ``pred_boxes``; ``pred_masks`` (n, 1, S, S), if present, are
            probabilities inside each box.
        height, width: size of the output image in pixels.

    Returns:
        new Instances of image size (height, width): ``pred_boxes`` scaled and clipped, without boxes of no area;
        ``pred_masks`` (n, height, width) bool, pasted when first read; all other fields unchanged.
    """
    scale_x, scale_y = width / instances.image_size[1], height / instances.image_size[0]
    boxes = Boxes(instances.pred_boxes.tensor.clone())
    boxes.scale(scale_x, scale_y)
    boxes.clip((height, width))
    fields = {name: value for name, value in instances.get_fields().items() if name != "pred_boxes"}
    results = Instances((height, width), pred_boxes=boxes, **fields)
    results = results[boxes.nonempty()]
    if not results.has("pred_masks"):
        return results
    probabilities = results.pred_masks[:, 0]
    results.remove("pred_masks")
    return MaskInstances.from_probabilities(results, probabilities, mask_threshold)
