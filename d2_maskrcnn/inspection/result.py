"""Stage 7: the final result and how it differs from the annotation. Output's frame: pixels of the image file."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from d2_maskrcnn.inspection.ground_truth import Truth
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.structures.masks import coco_iou, encode_rle, mask_to_polygons
from d2_maskrcnn.visualization.palette import OUTCOMES
from d2_maskrcnn.visualization.scene import Layer, Mark, Scene, box_points, draw_scene
from detectron2.structures import Instances

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLERANCE = 0.5  # pixels by which polygons may deviate from a mask
MATCH_IOU = 0.5  # as in PASCAL VOC and COCO's AP50
_COLORS = {
    "right": OUTCOMES["TP"],
    "confused": OUTCOMES["wrong class"],
    "false": OUTCOMES["FP"],
    "missed": OUTCOMES["FN"],
    "ignored": OUTCOMES["ignored"],
}


@dataclass
class Verdict:
    """One detection against the annotation.

    verdict: ``right``, ``confused`` (on an object of another class), ``false`` (on nothing, or on an object that a
    better-scored one has found) or ``ignored`` (in a crowd region). truth: index of the annotated object that it is on,
    or None. iou: with it, of masks where there are masks, of boxes else.
    """

    detection: int
    class_name: str
    score: float
    verdict: str
    truth: int | None = None
    truth_class: str | None = None
    iou: float = 0.0


@dataclass
class ResultFindings:
    """Detections of at least ``threshold`` and their verdicts; without annotations no verdicts."""

    threshold: float
    detections: int
    shown: int
    per_class: dict[str, int]
    annotated: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """The numbers alone."""
        return {**vars(self), "verdicts": [vars(v) for v in self.verdicts]}


def inspect_result(observation: Observation, threshold: float = 0.5) -> ResultFindings:
    """Compares the detections that score ``threshold`` or more with the annotation."""
    results = observation.intermediates.results[0].to("cpu")
    chosen = (results.scores >= threshold).nonzero().flatten().tolist()
    classes = results.pred_classes.tolist()
    names = [observation.class_name(classes[i]) for i in chosen]
    findings = ResultFindings(
        threshold, len(results), len(chosen), {name: names.count(name) for name in dict.fromkeys(names)}
    )
    if observation.truth is not None:
        findings.annotated = int((~observation.truth.crowd).sum())
        _judge(findings, observation, results, chosen)
    return findings


def _judge(findings: ResultFindings, observation: Observation, results: Instances, chosen: list[int]) -> None:
    """Each detection, best score first, takes the free object of its class that it overlaps most (COCO's matching)."""
    truth = observation.truth
    assert truth is not None
    overlaps = overlap_matrix(results, truth)  # (n, G)
    taken: set[int] = set()
    verdicts = []
    # Right ones first, so that a confused one never takes an object that a right one is on.
    for index in chosen:
        free = [g for g in range(len(truth)) if g not in taken and not truth.crowd[g]]
        same = [g for g in free if truth.classes[g] == int(results.pred_classes[index])]
        best = max(same, key=lambda g: overlaps[index, g], default=None)
        if best is not None and overlaps[index, best] >= MATCH_IOU:
            taken.add(best)
            verdicts.append(_verdict(observation, results, index, "right", best, overlaps))
        else:
            verdicts.append(_verdict(observation, results, index, "", None, overlaps))
    confused: set[int] = set()
    for verdict in verdicts:
        if not verdict.verdict:
            _settle(verdict, observation, results, overlaps, taken, confused)
    findings.verdicts = verdicts
    findings.missed = [g for g in range(len(truth)) if g not in taken and not truth.crowd[g] and g not in confused]
    kinds = [verdict.verdict for verdict in verdicts]
    findings.counts = {kind: kinds.count(kind) for kind in ("right", "confused", "false", "ignored")}
    findings.counts["missed"] = len(findings.missed)


def _settle(
    verdict: Verdict, observation: Observation, results: Instances, overlaps: np.ndarray, taken: set[int],
    confused: set[int],
) -> None:  # fmt: skip
    """``confused``, ``ignored`` or ``false``."""
    truth, row = observation.truth, overlaps[verdict.detection]
    assert truth is not None
    own = int(results.pred_classes[verdict.detection])
    others = [
        g for g in range(len(truth)) if not truth.crowd[g] and g not in taken | confused and truth.classes[g] != own
    ]
    best = max(others, key=lambda g: row[g], default=None)
    if best is not None and row[best] >= MATCH_IOU:
        confused.add(best)
        verdict.verdict, verdict.truth, verdict.iou = "confused", best, float(row[best])
        verdict.truth_class = observation.class_name(int(truth.classes[best]))
        return
    in_crowd = any(truth.crowd[g] and truth.classes[g] == own and row[g] >= MATCH_IOU for g in range(len(truth)))
    verdict.verdict = "ignored" if in_crowd else "false"


def _verdict(
    observation: Observation, results: Instances, index: int, kind: str, best: int | None, overlaps: np.ndarray
) -> Verdict:
    name = observation.class_name(int(results.pred_classes[index]))
    truth_class = None if best is None else name
    iou = 0.0 if best is None else float(overlaps[index, best])
    return Verdict(index, name, float(results.scores[index]), kind, best, truth_class, iou)


def overlap_matrix(results: Instances, truth: Truth) -> np.ndarray:
    """(n, G) IoU of masks where the model has masks, of boxes else; with a crowd region the share of the detection
    that lies in it (COCO's rule).
    """
    masks = getattr(results, "box_masks", None)
    if masks is not None:
        return coco_iou(masks.rles(), [encode_rle(mask) for mask in truth.masks], truth.crowd)
    return coco_iou(results.pred_boxes.tensor.cpu().numpy(), truth.boxes, truth.crowd)


def result_scene(observation: Observation, threshold: float = 0.5, limit: int = 100) -> Scene:
    """Masks, boxes and labels of the detections; with annotations also those, and the differences."""
    results = observation.intermediates.results[0].to("cpu")
    chosen = (results.scores >= threshold).nonzero().flatten()[:limit]
    findings = inspect_result(observation, threshold)
    shown = results[chosen]
    classes = shown.pred_classes.tolist()
    names = [f"{observation.class_name(c)} {s:.2f}" for c, s in zip(classes, shown.scores.tolist(), strict=True)]
    boxes = shown.pred_boxes.tensor.numpy()
    layers = []
    masks = getattr(shown, "box_masks", None)
    if masks is not None:
        marks = [Mark(masks.polygons(i, TOLERANCE), names[i], "", classes[i]) for i in range(len(names))]
        layers.append(Layer("masks", marks, filled=True, total=findings.shown))
    marks = [Mark([box_points(b)], n, n, c) for b, n, c in zip(boxes, names, classes, strict=True)]
    layers.append(Layer("boxes and labels", marks, total=findings.shown))
    layers += _difference_layers(observation, findings, results)
    return Scene(
        "result", "The final result", observation.image, observation.output_size, layers, observation.class_names
    )


def _difference_layers(observation: Observation, findings: ResultFindings, results: Instances) -> list[Layer]:
    truth = observation.truth
    if truth is None:
        return []
    classes = truth.classes.tolist()
    polygons = [mask_to_polygons(mask, tolerance=TOLERANCE) for mask in truth.masks]
    annotated = [Mark(p or [box_points(b)], f"annotated: {observation.class_name(c)}", "", c)
                 for p, b, c in zip(polygons, truth.boxes, classes, strict=True)]  # fmt: skip
    layers = [Layer("annotated", annotated, style="dashed", shown=False)]
    for kind in ("right", "confused", "false", "ignored"):
        marks = [_difference(observation, results, v) for v in findings.verdicts if v.verdict == kind]
        if marks:
            layers.append(Layer(kind, marks, _COLORS[kind], shown=False))
    marks = [Mark([box_points(truth.boxes[g])], f"missed: {observation.class_name(classes[g])}",
                  f"missed {observation.class_name(classes[g])}", classes[g]) for g in findings.missed]  # fmt: skip
    return layers + [Layer("missed", marks, _COLORS["missed"], "dashed", shown=False)]


def _difference(observation: Observation, results: Instances, verdict: Verdict) -> Mark:
    box = results.pred_boxes.tensor[verdict.detection].tolist()
    text = f"{verdict.verdict}: {verdict.class_name} {verdict.score:.2f}"
    if verdict.truth_class is not None:
        text += f", annotated {verdict.truth_class}, IoU {verdict.iou:.2f}"
    return Mark(
        [box_points(box)], text, f"{verdict.verdict} {verdict.class_name}", int(results.pred_classes[verdict.detection])
    )


def draw_result(observation: Observation, threshold: float = 0.5) -> "dict[str, Figure]":
    """Figures of this stage: ``result`` and, with annotations, ``differences``."""
    scene = result_scene(observation, threshold)
    figures = {"result": draw_scene(scene)}
    differences = [layer for layer in scene.layers if layer.name in ("right", "confused", "false", "ignored", "missed")]
    if observation.truth is not None:
        for layer in differences:
            layer.shown = True
        figures["differences"] = draw_scene(Scene("differences", "Differences", scene.image, scene.frame, differences))
    return figures
