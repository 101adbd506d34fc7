"""The final result compared with the ground truth; coordinates are pixels of the image file."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from d2_maskrcnn.data.ground_truth import GroundTruth
from d2_maskrcnn.evaluation.outcomes import MATCH_IOU, match
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.structures.masks import coco_iou, encode_rle, mask_to_polygons
from d2_maskrcnn.visualization.figures import draw_curves
from d2_maskrcnn.visualization.palette import OUTCOMES
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_points, draw_scene
from detectron2.structures import Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 0.5  # pixels by which polygons may deviate from a mask
FALSE_NEGATIVE = "FN"
DETECTION_OUTCOMES = tuple(name for name in OUTCOMES if name != FALSE_NEGATIVE)


@dataclass
class Outcome:
    """One detection compared with the ground truth.

    Attributes:
        detection: index of the detection.
        class_name, score: of the detection.
        outcome: ``TP`` (true positive), ``wrong class`` (on an object of another class), ``ignored`` (in a crowd region
            of its class) or ``FP`` (false positive: on the background, or on an object that a detection with a higher
            score has matched).
        gt_index, gt_class: the ground truth object of a true positive or wrong class.
        iou: with this object; of masks if the model predicts masks, else of boxes.
    """

    detection: int
    class_name: str
    score: float
    outcome: str
    gt_index: int | None = None
    gt_class: str | None = None
    iou: float | None = None


@dataclass
class ResultFindings:
    """Detections that score ``threshold`` or more, and their outcomes.

    Attributes:
        detections, shown: number of all detections, and of those that score ``threshold`` or more.
        per_class: class name -> number of the latter.
        ground_truth: number of objects without crowd regions. Without ground truth this is None and the rest is empty.
        counts: outcome -> number, including ``FN`` (false negatives).
        outcomes: of each detection.
        false_negatives: indices of the ground truth objects that no detection matched.
        below_threshold: how many of these a lower score threshold would match.
        duplicates: false positives that overlap an object of their class, which another detection has matched.
        ap50: average precision of all detections at an IoU of ``MATCH_IOU``, over all classes together, in [0, 1].
        precisions: (101,) interpolated precision at the recalls 0, 0.01, ..., 1, of which ``ap50`` is the mean.
        overlaps: (outcomes, objects) IoU of each detection with each object.
    """

    threshold: float
    detections: int
    shown: int
    per_class: dict[str, int]
    ground_truth: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    false_negatives: list[int] = field(default_factory=list)
    below_threshold: int = 0
    duplicates: int = 0
    ap50: float | None = None
    precisions: list[float] = field(default_factory=list)
    overlaps: np.ndarray | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the numbers for JSON."""
        return {**vars(self), "outcomes": [vars(item) for item in self.outcomes]}


def inspect_result(observation: Observation, threshold: float = 0.5) -> ResultFindings:
    """Compare the detections that score ``threshold`` or more with the ground truth."""
    results = observation.intermediates.results[0].to("cpu")
    chosen = (results.scores >= threshold).nonzero().flatten()
    names = [observation.class_name(c) for c in results.pred_classes[chosen].tolist()]
    per_class = {name: names.count(name) for name in dict.fromkeys(names)}
    findings = ResultFindings(threshold, len(results), len(chosen), per_class)
    if observation.ground_truth is not None:
        _compare(findings, observation, results, chosen.numpy())
    return findings


def _compare(findings: ResultFindings, observation: Observation, results: Instances, chosen: np.ndarray) -> None:
    """Fill in everything that needs the ground truth; ``chosen`` are the detections above the threshold."""
    ground_truth = observation.ground_truth
    assert ground_truth is not None
    classes, scores, all_overlaps = results.pred_classes.numpy(), results.scores, overlap_matrix(results, ground_truth)
    overlaps = all_overlaps[chosen]  # (n, G)
    outcomes, unmatched = match(classes[chosen], ground_truth.classes, overlaps, ground_truth.crowd)
    for index, ious, (outcome, gt) in zip(chosen.tolist(), overlaps, outcomes, strict=True):
        item = Outcome(index, observation.class_name(int(classes[index])), float(scores[index]), outcome)
        if gt is not None:
            item.gt_index, item.iou = gt, float(ious[gt])
            item.gt_class = observation.class_name(int(ground_truth.classes[gt]))
        findings.outcomes.append(item)
    kinds = [outcome for outcome, _ in outcomes]
    findings.counts = {kind: kinds.count(kind) for kind in DETECTION_OUTCOMES} | {FALSE_NEGATIVE: len(unmatched)}
    findings.ground_truth, findings.false_negatives = int((~ground_truth.crowd).sum()), unmatched
    findings.overlaps = overlaps
    same_class = classes[chosen][:, None] == ground_truth.classes
    on_object = (same_class & ~ground_truth.crowd & (overlaps >= MATCH_IOU)).any(axis=1)
    findings.duplicates = int((on_object & np.array([kind == "FP" for kind in kinds], bool)).sum())
    _add_precision(findings, match(classes, ground_truth.classes, all_overlaps, ground_truth.crowd)[0])


def _add_precision(findings: ResultFindings, outcomes: list[tuple[str, int | None]]) -> None:
    """Fill in the average precision and curve from the outcomes of all detections, whatever their score."""
    matched = {gt for outcome, gt in outcomes if outcome == "TP"}
    findings.below_threshold = len(matched & set(findings.false_negatives))
    if findings.ground_truth:
        hits = np.array([outcome == "TP" for outcome, _ in outcomes if outcome != "ignored"], bool)
        precisions = interpolated_precision(hits, findings.ground_truth)
        findings.precisions, findings.ap50 = precisions.tolist(), float(precisions.mean())


def interpolated_precision(hits: np.ndarray, objects: int) -> np.ndarray:
    """Compute COCO's interpolated precision at 101 recalls: the highest precision at this recall or a higher one.

    Args:
        hits: (n,) bool, whether each detection is a true positive; highest score first.
        objects: number of ground truth objects, at least 1.

    Returns:
        (101,) in [0, 1]; 0 for recalls that are not reached. The mean is the average precision.
    """
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(true_positives / objects, np.linspace(0, 1, 101))]


def overlap_matrix(results: Instances, ground_truth: GroundTruth) -> np.ndarray:
    """Compute (n, G) IoU of masks if there are masks, else of boxes; for crowd regions the share of the detection."""
    boxes = coco_iou(results.pred_boxes.tensor.cpu().numpy(), ground_truth.boxes, ground_truth.crowd)
    masks = getattr(results, "box_masks", None)
    if masks is None or not len(ground_truth):
        return boxes
    of_masks = coco_iou(masks.rles(), [encode_rle(mask) for mask in ground_truth.masks], ground_truth.crowd)
    return np.where(ground_truth.masks.any(axis=(1, 2)), of_masks, boxes)


def result_scene(observation: Observation, threshold: float = 0.5, limit: int = 100) -> Scene:
    """Show masks, boxes and labels of the detections and, with ground truth, the ground truth and each outcome."""
    results = observation.intermediates.results[0].to("cpu")
    findings = inspect_result(observation, threshold)
    shown = results[(results.scores >= threshold).nonzero().flatten()[:limit]]
    classes = shown.pred_classes.tolist()
    names = [f"{observation.class_name(c)} {s:.2f}" for c, s in zip(classes, shown.scores.tolist(), strict=True)]
    layers = []
    masks = getattr(shown, "box_masks", None)
    if masks is not None:
        marks = [Mark(masks.polygons(i, TOLERANCE), names[i], "", classes[i]) for i in range(len(names))]
        layers.append(Layer("masks", marks, filled=True, total=findings.shown))
    boxes = shown.pred_boxes.tensor.numpy()
    marks = [Mark([box_points(b)], n, n, c) for b, n, c in zip(boxes, names, classes, strict=True)]
    layers.append(Layer("boxes and labels", marks, total=findings.shown))
    layers += _outcome_layers(observation, findings, results)
    title = "The final result"
    return Scene("result", title, observation.original, observation.output_size, layers, observation.class_names)


def _outcome_layers(observation: Observation, findings: ResultFindings, results: Instances) -> list[Layer]:
    ground_truth = observation.ground_truth
    if ground_truth is None:
        return []
    classes = ground_truth.classes.tolist()
    names = [observation.class_name(c) for c in classes]
    polygons = [
        mask_to_polygons(mask, tolerance=TOLERANCE) or [box_points(box)]
        for mask, box in zip(ground_truth.masks, ground_truth.boxes, strict=True)
    ]
    marks = [Mark(p, f"ground truth: {n}", "", c) for p, n, c in zip(polygons, names, classes, strict=True)]
    layers = [Layer("ground truth", marks, style="dashed", shown=False)]
    for kind in DETECTION_OUTCOMES:
        marks = [_mark(item, results) for item in findings.outcomes if item.outcome == kind]
        if marks:
            layers.append(Layer(kind, marks, OUTCOMES[kind], shown=False))
    marks = [
        Mark([box_points(ground_truth.boxes[g])], f"FN: {names[g]}", f"FN {names[g]}", classes[g])
        for g in findings.false_negatives
    ]
    return [*layers, Layer(FALSE_NEGATIVE, marks, OUTCOMES[FALSE_NEGATIVE], "dashed", shown=False)]


def _mark(item: Outcome, results: Instances) -> Mark:
    box = results.pred_boxes.tensor[item.detection].tolist()
    text = f"{item.outcome}: {item.class_name} {item.score:.2f}"
    if item.iou is not None:
        text += f", IoU {item.iou:.2f} with {item.gt_class}"
    label = f"{item.outcome} {item.class_name}"
    return Mark([box_points(box)], text, label, int(results.pred_classes[item.detection]))


def draw_result(observation: Observation, threshold: float = 0.5) -> "dict[str, Figure]":
    """Draw the figures ``result`` and, with ground truth, ``outcomes`` and ``precision_recall``."""
    scene = result_scene(observation, threshold)
    figures = {"result": draw_scene(scene)}
    if observation.ground_truth is not None:
        layers = [replace(layer, shown=True) for layer in scene.layers if layer.name in OUTCOMES]
        figures["outcomes"] = draw_scene(replace(scene, name="outcomes", title="Outcomes", layers=layers))
        findings = inspect_result(observation, threshold)
        if findings.ap50 is not None:
            curve = {"all classes": np.array(findings.precisions)}
            figures["precision_recall"] = draw_curves(np.linspace(0, 1, 101), curve, f"IoU {MATCH_IOU}")
    return figures
