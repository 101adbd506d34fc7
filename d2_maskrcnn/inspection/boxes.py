"""Stage 2: what the box head makes of the proposals, before and after score threshold and non-maximum suppression.

Boxes are XYXY in the network's frame.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2_maskrcnn.inspection.anchors import recall, truth_layer
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.visualization.palette import class_color
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_marks, box_points, draw_scene
from detectron2.structures import Boxes, pairwise_iou

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Refinement:
    """A proposal and the detection that it became.

    roi: index among the image's regions. level: feature level that it was pooled from. moved: IoU of the box before
    and after. shift: distance between the centres, in pixels.
    """

    roi: int
    class_index: int
    class_name: str
    score: float
    level: str
    before: list[float]
    after: list[float]
    moved: float
    shift: float


@dataclass
class BoxFindings:
    """Counts and pairs. candidates: (region, class) pairs above the score threshold; kept: the detections among them;
    per_level: regions pooled from each level. recall: step -> IoU -> share of annotated boxes found.
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

    def as_dict(self) -> dict[str, object]:
        """The numbers alone."""
        return {**vars(self), "detections": [vars(item) for item in self.detections]}


def inspect_boxes(observation: Observation) -> BoxFindings:
    """Follows the proposals through the box head."""
    intermediates = observation.intermediates
    rois, candidates, kept = intermediates.rois[0], intermediates.candidates[0], intermediates.kept_candidates[0]
    probabilities, levels = intermediates.class_probs[0], intermediates.roi_levels
    assert levels is not None
    truth = observation.gt_boxes()
    foreground = probabilities.argmax(dim=1) < probabilities.shape[1] - 1
    boxes = {
        "proposals": rois.proposal_boxes.tensor,
        "candidates": candidates.pred_boxes.tensor,
        "detections": candidates.pred_boxes.tensor[kept],
    }
    return BoxFindings(
        regions=len(rois),
        foreground_regions=int(foreground.sum()),
        candidates=len(candidates),
        kept=len(kept),
        per_level={name: int((levels == i).sum()) for i, name in enumerate(observation.roi_level_names)},
        candidates_per_class=_per_class(observation, candidates.pred_classes),
        kept_per_class=_per_class(observation, candidates.pred_classes[kept]),
        recall={name: recall(tensor.float().cpu(), truth) for name, tensor in boxes.items()},
        detections=[_refinement(observation, int(index)) for index in kept],
    )


def _per_class(observation: Observation, classes: torch.Tensor) -> dict[str, int]:
    return {observation.class_name(int(c)): int((classes == c).sum()) for c in classes.unique()}


def _refinement(observation: Observation, index: int) -> Refinement:
    """The pair of candidate ``index``."""
    intermediates = observation.intermediates
    candidate = intermediates.candidates[0][index]
    roi, class_index = int(candidate.roi), int(candidate.pred_classes)
    before, after = intermediates.rois[0].proposal_boxes[roi].tensor.float(), candidate.pred_boxes.tensor.float()
    centres = [(box[0, :2] + box[0, 2:]) / 2 for box in (before, after)]
    assert intermediates.roi_levels is not None
    return Refinement(
        roi=roi,
        class_index=class_index,
        class_name=observation.class_name(class_index),
        score=float(candidate.scores),
        level=observation.roi_level_names[int(intermediates.roi_levels[roi])],
        before=[round(value, 3) for value in before[0].tolist()],
        after=[round(value, 3) for value in after[0].tolist()],
        moved=float(pairwise_iou(Boxes(before), Boxes(after))),
        shift=float((centres[0] - centres[1]).norm()),
    )


def refinement_scene(observation: Observation, count: int = 40) -> Scene:
    """Proposals dotted, what became of them solid, arrows from centre to centre; and what was suppressed.

    The best ``count`` of each kind.
    """
    intermediates = observation.intermediates
    kept = set(intermediates.kept_candidates[0].tolist())
    order = intermediates.candidates[0].scores.argsort(descending=True).tolist()
    groups = {
        "before NMS": [_refinement(observation, i) for i in [i for i in order if i not in kept][:count]],
        "detections": [_refinement(observation, i) for i in [i for i in order if i in kept][:count]],
    }
    layers = [_regions(observation, count)]
    layers += [_after(groups["before NMS"], "dropped by NMS, or one too many", len(order) - len(kept), shown=False)]
    layers += [
        _before(groups["detections"], len(kept)),
        _joins(groups["detections"], len(kept), head=max(observation.image.shape[:2]) / 80),
        _after(groups["detections"], "detections", len(kept), shown=True),
    ]
    height, width = observation.image.shape[:2]
    layers += [_shown(layer, False) for layer in truth_layer(observation)]
    return Scene(
        "refinement", "Proposals and what the second stage made of them", observation.image, (height, width), layers,
        observation.class_names,
    )  # fmt: skip


def level_scene(observation: Observation, count: int = 40) -> Scene:
    """Which level each of the best ``count`` proposals was pooled from, one layer for each level."""
    intermediates, layers = observation.intermediates, []
    assert intermediates.roi_levels is not None
    boxes = intermediates.rois[0].proposal_boxes.tensor.cpu()
    levels = intermediates.roi_levels.cpu()
    for index, name in enumerate(observation.roi_level_names):
        here = boxes[levels == index]
        marks = box_marks(here[:count].numpy(), [f"pooled from {name}"] * len(here))
        layers.append(Layer(name, marks, class_color(index), total=len(here)))
    height, width = observation.image.shape[:2]
    return Scene(
        "roi-levels", "The level that each proposal is pooled from", observation.image, (height, width), layers
    )


def _regions(observation: Observation, count: int) -> Layer:
    """The best proposals with the box of their likeliest class, whatever its score."""
    intermediates = observation.intermediates
    scores, classes = intermediates.class_probs[0][:, :-1].max(dim=1)
    best = scores.argsort(descending=True)[:count]
    decoded = intermediates.decoded_boxes[0]
    picked = decoded[best, 0 if decoded.shape[1] == 1 else classes[best]]
    texts = [f"{observation.class_name(int(classes[i]))} {float(scores[i]):.3f}" for i in best]
    marks = box_marks(picked.cpu().numpy(), texts, classes[best].tolist())
    return Layer("before the threshold", marks, style="dashed", shown=False, total=len(scores))


def _before(pairs: list[Refinement], total: int) -> Layer:
    texts = [f"proposal {pair.roi}, pooled from {pair.level}" for pair in pairs]
    marks = [
        Mark([box_points(pair.before)], text, class_index=pair.class_index)
        for pair, text in zip(pairs, texts, strict=True)
    ]
    return Layer("proposals", marks, style="dotted", total=total)


def _after(pairs: list[Refinement], name: str, total: int, shown: bool) -> Layer:
    marks = [
        Mark([box_points(p.after)], f"{p.class_name} {p.score:.3f}", f"{p.class_name} {p.score:.2f}", p.class_index)
        for p in pairs
    ]
    return Layer(name, marks, shown=shown, total=total)


def _joins(pairs: list[Refinement], total: int, head: float) -> Layer:
    marks = [
        Mark([_arrow(_centre(p.before), _centre(p.after), head)], f"{p.class_name} {p.score:.3f} moved {p.shift:.1f} "
             f"pixels, overlaps its proposal by {p.moved:.2f}", line=True, class_index=p.class_index)
        for p in pairs
    ]  # fmt: skip
    return Layer("moves", marks, total=total)


def _arrow(start: np.ndarray, end: np.ndarray, head: float) -> np.ndarray:
    """(n, 2) points of one open line that draws an arrow; too short ones are without a head."""
    length = float(np.linalg.norm(end - start))
    if length < head:
        return np.stack([start, end])
    back = (start - end) / length * head
    side = np.array([-back[1], back[0]]) / 2
    return np.stack([start, end, end + back + side, end, end + back - side])


def _centre(box: list[float]) -> np.ndarray:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _shown(layer: Layer, shown: bool) -> Layer:
    layer.shown = shown
    return layer


def draw_boxes(observation: Observation) -> "dict[str, Figure]":
    """Figures of this stage: ``refinement`` and ``levels``."""
    return {
        "refinement": draw_scene(refinement_scene(observation)),
        "levels": draw_scene(level_scene(observation), split=True),
    }
