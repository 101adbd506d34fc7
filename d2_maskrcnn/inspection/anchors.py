"""Stage 1: anchors, how training labels them, and what the region proposal network makes of them.

(Ren et al. 2015, arXiv:1506.01497, section 3.) All boxes are XYXY in the network's frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.visualization.palette import AQUA, GREEN, GROUND_TRUTH, PINK, RED, VIOLET, Color, class_color
from d2_maskrcnn.visualization.scene import Layer, Scene, box_marks, draw_scene
from detectron2.structures import Boxes, pairwise_iou

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECALL_IOUS = (0.5, 0.75)
_IOU_ROWS = 200_000  # boxes whose overlaps are computed at once


@dataclass
class LevelAnchors:
    """The anchors of one feature level; labels are None without annotations.

    stride: pixels between positions. grid: positions (rows, columns). anchors: all of them. sizes: (n, 2) width and
    height of those at one position, in pixels. positive, negative, neutral: as training labels them (object,
    background, neither). sampled_positive, sampled_negative: the part that enters the loss.
    """

    name: str
    stride: int
    grid: tuple[int, int]
    anchors: int
    sizes: list[list[float]]
    positive: int | None = None
    negative: int | None = None
    neutral: int | None = None
    sampled_positive: int | None = None
    sampled_negative: int | None = None


@dataclass
class Step:
    """Boxes that are left after one step. recall: IoU threshold -> share of the annotated boxes that some box here
    overlaps by at least that much; None without annotated boxes.
    """

    name: str
    boxes: torch.Tensor  # (n, 4)
    count: int
    per_level: list[int]
    recall: dict[str, float] | None


@dataclass
class AnchorFindings:
    """Everything about anchors that can be counted."""

    levels: list[LevelAnchors]
    steps: list[Step]
    annotated: int

    def as_dict(self) -> dict[str, object]:
        """The numbers alone."""
        steps = [{k: v for k, v in vars(step).items() if k != "boxes"} for step in self.steps]
        return {"annotated_boxes": self.annotated, "levels": [vars(level) for level in self.levels], "steps": steps}


def inspect_anchors(observation: Observation) -> AnchorFindings:
    """Counts anchors and labels, and follows the boxes through the region proposal network."""
    truth = observation.gt_boxes()
    return observation.once(
        "anchors", lambda: AnchorFindings(_levels(observation), _steps(observation, truth), len(truth))
    )


def _levels(observation: Observation) -> list[LevelAnchors]:
    intermediates, levels = observation.intermediates, []
    for index, anchors in enumerate(intermediates.anchors):
        height, width = intermediates.features[observation.level_names[index]].shape[-2:]
        cell = anchors[: len(anchors) // (height * width)]
        sizes = (cell[:, 2:] - cell[:, :2]).cpu().tolist()
        levels.append(
            LevelAnchors(
                observation.level_names[index], observation.strides[index], (height, width), len(anchors),
                [[round(side, 3) for side in size] for size in sizes],
            )
        )  # fmt: skip
    if observation.training is not None:
        counts = [level.anchors for level in levels]
        labels = observation.training.anchor_labels[0].split(counts)
        sampled = observation.training.sampled_anchor_labels[0].split(counts)
        for level, wanted, drawn in zip(levels, labels, sampled, strict=True):
            level.positive, level.negative, level.neutral = (int((wanted == value).sum()) for value in (1, 0, -1))
            level.sampled_positive, level.sampled_negative = int((drawn == 1).sum()), int((drawn == 0).sum())
    return levels


def _steps(observation: Observation, truth: torch.Tensor) -> list[Step]:
    intermediates = observation.intermediates
    chosen = [level[index[0]] for level, index in zip(intermediates.anchors, intermediates.topk_anchors, strict=True)]
    refined = [boxes[0] for boxes in intermediates.topk_boxes]
    clipped, kept = intermediates.clipped_proposals[0], intermediates.proposals[0]
    number = len(intermediates.anchors)
    by_level = [[int((item.level == i).sum()) for i in range(number)] for item in (clipped, kept)]
    return [
        _step("all anchors", torch.cat(intermediates.anchors), [len(a) for a in intermediates.anchors], truth),
        _step("top-scored anchors", torch.cat(chosen), [len(a) for a in chosen], truth),
        _step("refined", torch.cat(refined), [len(a) for a in refined], truth),
        _step("clipped to the image", clipped.proposal_boxes.tensor, by_level[0], truth),
        _step("kept after NMS", kept.proposal_boxes.tensor, by_level[1], truth),
    ]


def _step(name: str, boxes: torch.Tensor, per_level: list[int], truth: torch.Tensor) -> Step:
    boxes = boxes.float().cpu()
    return Step(name, boxes, len(boxes), per_level, recall(boxes, truth))


def recall(boxes: torch.Tensor, truth: torch.Tensor, ious: Sequence[float] = RECALL_IOUS) -> dict[str, float] | None:
    """Share of ``truth`` (G, 4) that some of ``boxes`` (n, 4) overlaps by each IoU at least; None if G is 0."""
    if len(truth) == 0:
        return None
    best = torch.zeros(len(truth))
    for part in boxes.split(_IOU_ROWS):
        if len(part) > 0:
            best = torch.maximum(best, pairwise_iou(Boxes(truth), Boxes(part)).max(dim=1).values)
    return {f"{iou:.2f}": float((best >= iou).float().mean()) for iou in ious}


def truth_layer(observation: Observation) -> list[Layer]:
    """The annotated boxes in the network's frame; no layer without annotations."""
    if observation.truth_network is None:
        return []
    classes = observation.truth_network.gt_classes.tolist()
    texts = [f"annotated: {observation.class_name(c)}" for c in classes]
    return [
        Layer(
            "annotated",
            box_marks(observation.gt_boxes().numpy(), texts, classes),
            GROUND_TRUTH,
            "dashed",
            backdrop=True,
        )
    ]


def level_scene(observation: Observation) -> Scene:
    """The anchors at one position of each level: at the one nearest to the image's centre."""
    layers = []
    height, width = observation.image.shape[:2]
    for index, anchors in enumerate(observation.intermediates.anchors):
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        distance = (centres - centres.new_tensor([width / 2, height / 2])).square().sum(dim=1)
        here = (distance <= distance.min() + 1e-3).nonzero().flatten()
        # Several positions can be equally near: those that share the first one's centre are one position's.
        here = here[(centres[here] - centres[here[0]]).abs().max(dim=1).values < 1e-3] if len(here) else here
        boxes = anchors[here].cpu().numpy()
        texts = [f"{observation.level_names[index]}: {w:.0f} x {h:.0f}" for w, h in boxes[:, 2:] - boxes[:, :2]]
        layers.append(
            Layer(observation.level_names[index], box_marks(boxes, texts), class_color(index), total=len(anchors))
        )
    return _scene(observation, "anchor-levels", "One position's anchors on each level", layers)


def label_scene(observation: Observation, limit: int = 200) -> Scene:
    """Anchors as training would label them, ``limit`` of each kind at most; no layers without annotations."""
    layers: list[Layer] = []
    if observation.training is not None:
        anchors = torch.cat(observation.intermediates.anchors).cpu()
        labels = observation.training.anchor_labels[0].cpu()
        sampled = observation.training.sampled_anchor_labels[0].cpu()
        kinds = [
            ("neutral", labels == -1, AQUA, False),
            ("negative, drawn for the loss", sampled == 0, RED, False),
            ("positive", labels == 1, GREEN, True),
            ("positive, drawn for the loss", sampled == 1, PINK, False),
        ]
        for name, chosen, colour, shown in kinds:
            boxes, total = _some(anchors[chosen], limit)
            layers.append(Layer(name, box_marks(boxes), colour, shown=shown, total=total))
    return _scene(observation, "anchor-labels", "Anchors as training labels them", layers + truth_layer(observation))


def proposal_scene(observation: Observation, count: int = 40) -> Scene:
    """The best-scored anchors before and after refinement, clipped, and what NMS kept: ``count`` of each."""
    intermediates = observation.intermediates
    logits = torch.cat(
        [level[0][index[0]] for level, index in zip(intermediates.rpn_logits, intermediates.topk_anchors, strict=True)]
    )
    anchors = torch.cat(
        [level[index[0]] for level, index in zip(intermediates.anchors, intermediates.topk_anchors, strict=True)]
    )
    refined = torch.cat([boxes[0] for boxes in intermediates.topk_boxes])
    best = logits.argsort(descending=True)[:count]
    clipped, kept = intermediates.clipped_proposals[0], intermediates.proposals[0]
    order = clipped.objectness_logits.argsort(descending=True)[:count]
    layers = [
        _scored("top anchors, before", anchors[best], logits[best], VIOLET, "dotted", len(logits), True),
        _scored("top anchors, refined", refined[best], logits[best], PINK, "solid", len(logits), True),
        _scored("clipped", clipped.proposal_boxes.tensor[order], clipped.objectness_logits[order], AQUA, "solid",
                len(clipped), False),
        _scored("kept after NMS", kept.proposal_boxes.tensor[:count], kept.objectness_logits[:count], GREEN, "solid",
                len(kept), False),
    ]  # fmt: skip
    return _scene(observation, "proposals", "From anchors to proposals", layers + truth_layer(observation))


def _scored(
    name: str, boxes: torch.Tensor, logits: torch.Tensor, color: Color, style: str, total: int, shown: bool
) -> Layer:
    texts = [f"{name}: objectness {value:.3f}" for value in logits.sigmoid().tolist()]
    return Layer(name, box_marks(boxes.cpu().numpy(), texts), color, style, shown=shown, total=total)


def _some(boxes: torch.Tensor, limit: int) -> tuple[np.ndarray, int]:
    """At most ``limit`` boxes, spread evenly over all, and how many there are."""
    if len(boxes) <= limit:
        return boxes.numpy(), len(boxes)
    return boxes[torch.linspace(0, len(boxes) - 1, limit).long()].numpy(), len(boxes)


def _scene(observation: Observation, name: str, title: str, layers: list[Layer]) -> Scene:
    height, width = observation.image.shape[:2]
    return Scene(name, title, observation.image, (height, width), layers, observation.class_names)


def draw_anchors(observation: Observation) -> "dict[str, Figure]":
    """Figures of this stage: ``levels``, ``labels`` (with annotations) and ``proposals``."""
    figures = {"levels": draw_scene(level_scene(observation))}
    if observation.training is not None:
        figures["labels"] = draw_scene(label_scene(observation), split=True)
    figures["proposals"] = draw_scene(proposal_scene(observation), split=True)
    return figures
