"""The box head: from proposals to detections, before and after score threshold and non-maximum suppression.

Boxes are XYXY in pixels of the network's input image.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from d2_maskrcnn.inspection.anchors import ground_truth_layers, recall
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.visualization.palette import class_color
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_marks, box_points, draw_scene
from detectron2.structures import Boxes, pairwise_iou

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Refinement:
    """A proposal and the box that it became.

    Attributes:
        roi: index of the proposal among the image's regions.
        class_index, class_name, score: of the box.
        level: feature level that the proposal was pooled from.
        before, after: XYXY of the proposal and the box.
        iou: of the two.
        shift: distance between their centers, in pixels.
    """

    roi: int
    class_index: int
    class_name: str
    score: float
    level: str
    before: list[float]
    after: list[float]
    iou: float
    shift: float


@dataclass
class BoxFindings:
    """Numbers of the section.

    Attributes:
        regions: proposals given to the box head.
        foreground_regions: those whose most probable class is not the background.
        candidates: pairs of region and class above the score threshold.
        kept: candidates that became detections.
        per_level: feature level -> regions pooled from it.
        candidates_per_class, kept_per_class: class name -> number.
        recall: step -> IoU threshold -> share of the ground truth boxes; None without ground truth boxes.
        detections: each detection and its proposal.
        sampled: ``foreground`` and ``background`` regions that training samples for the loss; empty without ground
            truth.
        deltas: for dx, dy, dw, dh of the sampled foreground regions, the mean and standard deviation of the regression
            targets before (``mean``, ``std``) and after (``normalized_mean``, ``normalized_std``) they are multiplied
            by ``MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS``; empty without foreground regions.
    """

    regions: int
    foreground_regions: int
    candidates: int
    kept: int
    per_level: dict[str, int]
    candidates_per_class: dict[str, int]
    kept_per_class: dict[str, int]
    recall: dict[str, dict[str, float] | None]
    detections: list[Refinement]
    sampled: dict[str, int] = field(default_factory=dict)
    deltas: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON."""
        return {**vars(self), "detections": [vars(item) for item in self.detections]}


def inspect_boxes(observation: Observation) -> BoxFindings:
    """Count the boxes of each step of the box head, and pair detections with their proposals."""
    return observation.once("boxes", lambda: _inspect(observation))


def _inspect(observation: Observation) -> BoxFindings:
    recorded = observation.intermediates
    rois, candidates, kept = recorded.rois[0], recorded.candidates[0], recorded.kept_candidates[0]
    probabilities, levels = recorded.class_probs[0], recorded.roi_levels
    assert levels is not None
    boxes = {
        "proposals": rois.proposal_boxes.tensor,
        "candidates": candidates.pred_boxes.tensor,
        "detections": candidates.pred_boxes.tensor[kept],
    }
    return BoxFindings(
        regions=len(rois),
        foreground_regions=int((probabilities.argmax(dim=1) < probabilities.shape[1] - 1).sum()),
        candidates=len(candidates),
        kept=len(kept),
        per_level={name: int((levels == i).sum()) for i, name in enumerate(observation.roi_level_names)},
        candidates_per_class=_per_class(observation, candidates.pred_classes),
        kept_per_class=_per_class(observation, candidates.pred_classes[kept]),
        recall={name: recall(tensor.float().cpu(), observation.gt_boxes()) for name, tensor in boxes.items()},
        detections=[_refinement(observation, index) for index in kept.tolist()],
        **_training_regions(observation),
    )


def _training_regions(observation: Observation) -> dict[str, Any]:
    """Count the regions that training samples, and compute the statistics of their regression targets."""
    if observation.training is None or not observation.training.rois:
        return {}
    rois = observation.training.rois[0]
    background = observation.intermediates.class_probs[0].shape[1] - 1
    foreground = rois[rois.gt_classes < background]
    sampled = {"foreground": len(foreground), "background": len(rois) - len(foreground)}
    if not len(foreground):
        return {"sampled": sampled}
    boxes, targets = foreground.proposal_boxes.tensor.float(), foreground.gt_boxes.tensor.float()
    deltas = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode(boxes, targets).cpu()  # (F, 4)
    weights = observation.box_weights
    return {
        "sampled": sampled,
        "deltas": {
            name: {
                "mean": float(values.mean()),
                "std": float(values.std(correction=0)),
                "normalized_mean": float(values.mean()) * weight,
                "normalized_std": float(values.std(correction=0)) * weight,
            }
            for name, values, weight in zip(("dx", "dy", "dw", "dh"), deltas.T, weights, strict=True)
        },
    }


def _per_class(observation: Observation, classes: torch.Tensor) -> dict[str, int]:
    return {observation.class_name(int(c)): int((classes == c).sum()) for c in classes.unique()}


def _refinement(observation: Observation, index: int) -> Refinement:
    """Pair candidate ``index`` with its proposal."""
    recorded = observation.intermediates
    candidate = recorded.candidates[0][index]
    roi, class_index = int(candidate.roi), int(candidate.pred_classes)
    before, after = recorded.rois[0].proposal_boxes[roi].tensor.float(), candidate.pred_boxes.tensor.float()
    centers = [(box[0, :2] + box[0, 2:]) / 2 for box in (before, after)]
    assert recorded.roi_levels is not None
    return Refinement(
        roi=roi,
        class_index=class_index,
        class_name=observation.class_name(class_index),
        score=float(candidate.scores),
        level=observation.roi_level_names[int(recorded.roi_levels[roi])],
        before=[round(value, 3) for value in before[0].tolist()],
        after=[round(value, 3) for value in after[0].tolist()],
        iou=float(pairwise_iou(Boxes(before), Boxes(after))),
        shift=float((centers[0] - centers[1]).norm()),
    )


def refinement_scene(observation: Observation, count: int = 40) -> Scene:
    """Show proposals (dotted), the boxes they became (solid) and the moves between them, the best ``count`` of each."""
    recorded = observation.intermediates
    kept = recorded.kept_candidates[0].tolist()
    is_kept = set(kept)
    order = recorded.candidates[0].scores.argsort(descending=True).tolist()
    dropped = [index for index in order if index not in is_kept]
    suppressed = [_refinement(observation, index) for index in dropped[:count]]
    detections = [_refinement(observation, index) for index in order if index in is_kept][:count]
    layers = [
        _most_probable(observation, count),
        _after(suppressed, "dropped by NMS or the limit", len(dropped), shown=False),
        _before(detections, len(kept)),
        _moves(detections, len(kept), head=max(observation.image.shape) / 80),
        _after(detections, "detections", len(kept), shown=True),
        *ground_truth_layers(observation, shown=False),
    ]
    return observation.network_scene("refinement", "Proposals and the boxes they became", layers)


def level_scene(observation: Observation, count: int = 40) -> Scene:
    """Show the level that each of the best proposals was pooled from, one layer per level with ``count`` proposals."""
    recorded, layers = observation.intermediates, []
    assert recorded.roi_levels is not None
    boxes, levels = recorded.rois[0].proposal_boxes.tensor.cpu(), recorded.roi_levels.cpu()
    for index, name in enumerate(observation.roi_level_names):
        pooled = boxes[levels == index]
        marks = box_marks(pooled[:count].numpy(), [f"pooled from {name}"] * len(pooled))
        layers.append(Layer(name, marks, class_color(index), total=len(pooled)))
    return observation.network_scene("roi-levels", "The level that each proposal is pooled from", layers)


def _most_probable(observation: Observation, count: int) -> Layer:
    """Make a layer of the best proposals with the box of their most probable class, whatever its score."""
    recorded = observation.intermediates
    scores, classes = recorded.class_probs[0][:, :-1].max(dim=1)
    best = scores.argsort(descending=True)[:count]
    decoded = recorded.decoded_boxes[0]
    boxes = decoded[best, 0 if decoded.shape[1] == 1 else classes[best]]
    texts = [f"{observation.class_name(int(classes[i]))} {float(scores[i]):.3f}" for i in best]
    marks = box_marks(boxes.cpu().numpy(), texts, classes[best].tolist())
    return Layer("before the score threshold", marks, style="dashed", shown=False, total=len(scores))


def _before(pairs: list[Refinement], total: int) -> Layer:
    marks = [
        Mark([box_points(p.before)], f"proposal {p.roi}, pooled from {p.level}", class_index=p.class_index)
        for p in pairs
    ]
    return Layer("proposals", marks, style="dotted", total=total)


def _after(pairs: list[Refinement], name: str, total: int, shown: bool) -> Layer:
    marks = [
        Mark([box_points(p.after)], f"{p.class_name} {p.score:.3f}", f"{p.class_name} {p.score:.2f}", p.class_index)
        for p in pairs
    ]
    return Layer(name, marks, shown=shown, total=total)


def _moves(pairs: list[Refinement], total: int, head: float) -> Layer:
    marks = []
    for pair in pairs:
        text = f"{pair.class_name} {pair.score:.3f}: moved by {pair.shift:.1f} pixels, IoU {pair.iou:.2f}"
        arrow = _arrow(_center(pair.before), _center(pair.after), head)
        marks.append(Mark([arrow], text, class_index=pair.class_index, line=True))
    return Layer("moves", marks, total=total)


def _arrow(start: np.ndarray, end: np.ndarray, head: float) -> np.ndarray:
    """Return the points of an arrow as one open line (n, 2); an arrow shorter than its head is a plain line."""
    length = float(np.linalg.norm(end - start))
    if length < head:
        return np.stack([start, end])
    back = (start - end) / length * head
    side = np.array([-back[1], back[0]]) / 2
    return np.stack([start, end, end + back + side, end, end + back - side])


def _center(box: list[float]) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def draw_boxes(observation: Observation) -> "dict[str, Figure]":
    """Draw the figures ``refinement`` and ``levels``."""
    return {
        "refinement": draw_scene(refinement_scene(observation)),
        "levels": draw_scene(level_scene(observation), split=True),
    }
