"""Anchors, their training labels, and the steps from anchors to proposals (Ren et al. 2015, arXiv:1506.01497).

Boxes are XYXY in pixels of the network's input image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.visualization.palette import (
    AQUA,
    GREEN,
    GROUND_TRUTH,
    ORANGE,
    PINK,
    RED,
    VIOLET,
    Color,
    class_color,
)
from d2_maskrcnn.visualization.scene import Layer, Scene, box_marks, draw_scene
from detectron2.structures import Boxes, pairwise_iou

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECALL_IOUS = (0.5, 0.75)
_CHUNK = 200_000  # boxes whose IoU is computed at once


@dataclass
class LevelAnchors:
    """Anchors of one feature level; the labels are None without ground truth.

    Attributes:
        stride: pixels between two positions.
        grid: positions, (rows, columns).
        anchors: number of anchors at all positions.
        sizes: (width, height) in pixels of each anchor at one position.
        positive, negative, neutral: anchors that training labels as object, background and neither.
        sampled_positive, sampled_negative: those of them that are sampled for the loss.
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
    """Boxes that remain after one step.

    Attributes:
        boxes: (n, 4) XYXY, on the CPU.
        count, per_level: their number, in total and from each feature level.
        recall: IoU threshold -> share of the ground truth boxes that one of the boxes overlaps by at least this IoU;
            None without ground truth boxes.
    """

    name: str
    boxes: torch.Tensor
    count: int
    per_level: list[int]
    recall: dict[str, float] | None


@dataclass
class AnchorFindings:
    """Numbers of the section.

    Attributes:
        levels: anchors of each level.
        steps: boxes that each step keeps.
        ground_truth: number of ground truth boxes.
        uncovered: those of them that no anchor overlaps by an IoU of 0.5.
    """

    levels: list[LevelAnchors]
    steps: list[Step]
    ground_truth: int
    uncovered: int

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON."""
        steps = [{k: v for k, v in vars(step).items() if k != "boxes"} for step in self.steps]
        levels = [vars(level) for level in self.levels]
        boxes = {"ground_truth_boxes": self.ground_truth, "uncovered_boxes": self.uncovered}
        return {**boxes, "levels": levels, "steps": steps}


def inspect_anchors(observation: Observation) -> AnchorFindings:
    """Count anchors and their labels, and the boxes that each step of the region proposal network keeps."""
    return observation.once("anchors", lambda: _inspect(observation))


def _inspect(observation: Observation) -> AnchorFindings:
    boxes = observation.gt_boxes()
    steps = _steps(observation, boxes)
    covered = 1.0 if steps[0].recall is None else steps[0].recall["0.50"]
    return AnchorFindings(_levels(observation), steps, len(boxes), round(len(boxes) * (1 - covered)))


def _levels(observation: Observation) -> list[LevelAnchors]:
    recorded, levels = observation.intermediates, []
    for index, anchors in enumerate(recorded.anchors):
        name = observation.level_names[index]
        height, width = recorded.features[name].shape[-2:]
        cell = anchors[: len(anchors) // (height * width)]
        sizes = [[round(side, 3) for side in size] for size in (cell[:, 2:] - cell[:, :2]).cpu().tolist()]
        levels.append(LevelAnchors(name, observation.strides[index], (height, width), len(anchors), sizes))
    if observation.training is not None:
        counts = [level.anchors for level in levels]
        all_labels = observation.training.anchor_labels[0].split(counts)
        all_sampled = observation.training.sampled_anchor_labels[0].split(counts)
        for level, labels, sampled in zip(levels, all_labels, all_sampled, strict=True):
            level.positive, level.negative, level.neutral = (int((labels == value).sum()) for value in (1, 0, -1))
            level.sampled_positive, level.sampled_negative = int((sampled == 1).sum()), int((sampled == 0).sum())
    return levels


def _steps(observation: Observation, gt_boxes: torch.Tensor) -> list[Step]:
    recorded = observation.intermediates
    chosen = [level[index[0]] for level, index in zip(recorded.anchors, recorded.topk_anchors, strict=True)]
    refined = [boxes[0] for boxes in recorded.topk_boxes]
    steps = [
        ("all anchors", torch.cat(recorded.anchors), [len(a) for a in recorded.anchors]),
        ("top-scored anchors", torch.cat(chosen), [len(a) for a in chosen]),
        ("refined", torch.cat(refined), [len(a) for a in refined]),
    ]
    for name, item in (
        ("clipped to the image", recorded.clipped_proposals[0]),
        ("kept after NMS", recorded.proposals[0]),
    ):
        per_level = [int((item.level == i).sum()) for i in range(len(recorded.anchors))]
        steps.append((name, item.proposal_boxes.tensor, per_level))
    return [
        Step(name, (tensor := boxes.float().cpu()), len(tensor), per_level, recall(tensor, gt_boxes))
        for name, boxes, per_level in steps
    ]


def recall(boxes: torch.Tensor, gt_boxes: torch.Tensor, ious: Sequence[float] = RECALL_IOUS) -> dict[str, float] | None:
    """Compute the share of ground truth boxes (G, 4) that one of (n, 4) boxes overlaps by each IoU; None if G is 0."""
    if len(gt_boxes) == 0:
        return None
    best = torch.zeros(len(gt_boxes))
    for part in boxes.split(_CHUNK):
        if len(part) > 0:
            best = torch.maximum(best, pairwise_iou(Boxes(gt_boxes), Boxes(part)).max(dim=1).values)
    return {f"{iou:.2f}": float((best >= iou).float().mean()) for iou in ious}


def ground_truth_layers(observation: Observation, shown: bool = True) -> list[Layer]:
    """Make a layer of the ground truth boxes; none without ground truth."""
    if observation.gt_instances is None:
        return []
    classes = observation.gt_instances.gt_classes.tolist()
    texts = [f"ground truth: {observation.class_name(c)}" for c in classes]
    marks = box_marks(observation.gt_boxes().numpy(), texts, classes)
    return [Layer("ground truth", marks, GROUND_TRUTH, "dashed", shown=shown, backdrop=True)]


def level_scene(observation: Observation) -> Scene:
    """Show the anchors at one position of each level, the position nearest to the image's center."""
    layers = []
    height, width = observation.image.shape[:2]
    for index, anchors in enumerate(observation.intermediates.anchors):
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        distance = (centers - centers.new_tensor([width / 2, height / 2])).square().sum(dim=1)
        nearest = centers[distance.argmin()]  # one position, where several are equally near
        boxes = anchors[(centers - nearest).abs().max(dim=1).values < 1e-3].cpu().numpy()
        name = observation.level_names[index]
        texts = [f"{name}: {w:.0f} x {h:.0f}" for w, h in boxes[:, 2:] - boxes[:, :2]]
        layers.append(Layer(name, box_marks(boxes, texts), class_color(index), total=len(anchors)))
    return observation.network_scene("anchor-levels", "Anchors at one position of each level", layers)


def label_scene(observation: Observation, limit: int = 200) -> Scene:
    """Show the anchors by their training label, at most ``limit`` of each; no layers without ground truth."""
    layers: list[Layer] = []
    if observation.training is not None:
        anchors = torch.cat(observation.intermediates.anchors).cpu()
        labels = observation.training.anchor_labels[0].cpu()
        sampled = observation.training.sampled_anchor_labels[0].cpu()
        kinds = [
            ("neutral", labels == -1, AQUA, False),
            ("negative, sampled", sampled == 0, RED, False),
            ("positive", labels == 1, GREEN, True),
            ("positive, sampled", sampled == 1, ORANGE, False),
        ]
        for name, chosen, color, shown in kinds:
            boxes = anchors[chosen]
            spread = torch.linspace(0, max(len(boxes) - 1, 0), min(limit, len(boxes))).long()
            layers.append(Layer(name, box_marks(boxes[spread].numpy()), color, shown=shown, total=len(boxes)))
    layers += ground_truth_layers(observation)
    return observation.network_scene("anchor-labels", "Anchors as training labels them", layers)


def proposal_scene(observation: Observation, count: int = 40) -> Scene:
    """Show the top-scored anchors, the same refined and clipped, and the proposals after NMS, ``count`` of each."""
    recorded = observation.intermediates
    chosen = recorded.topk_anchors
    logits = torch.cat([level[0][index[0]] for level, index in zip(recorded.rpn_logits, chosen, strict=True)])
    anchors = torch.cat([level[index[0]] for level, index in zip(recorded.anchors, chosen, strict=True)])
    refined = torch.cat([boxes[0] for boxes in recorded.topk_boxes])
    clipped, kept = recorded.clipped_proposals[0], recorded.proposals[0]
    layers = [
        _scored("top anchors", anchors, logits, VIOLET, count, style="dotted"),
        _scored("top anchors, refined", refined, logits, PINK, count),
        _scored("clipped", clipped.proposal_boxes.tensor, clipped.objectness_logits, AQUA, count, shown=False),
        _scored("kept after NMS", kept.proposal_boxes.tensor, kept.objectness_logits, GREEN, count, shown=False),
    ]
    layers += ground_truth_layers(observation)
    return observation.network_scene("proposals", "From anchors to proposals", layers)


def _scored(
    name: str, boxes: torch.Tensor, logits: torch.Tensor, color: Color, count: int, *, style: str = "solid",
    shown: bool = True,
) -> Layer:  # fmt: skip
    """Make a layer of the ``count`` best-scored boxes."""
    best = logits.argsort(descending=True)[:count]
    texts = [f"{name}: objectness {value:.3f}" for value in logits[best].sigmoid().tolist()]
    return Layer(name, box_marks(boxes[best].cpu().numpy(), texts), color, style, shown=shown, total=len(boxes))


def draw_anchors(observation: Observation) -> "dict[str, Figure]":
    """Draw the figures ``levels``, ``labels`` (with ground truth) and ``proposals``."""
    figures = {"levels": draw_scene(level_scene(observation))}
    if observation.training is not None:
        figures["labels"] = draw_scene(label_scene(observation), split=True)
    figures["proposals"] = draw_scene(proposal_scene(observation), split=True)
    return figures
