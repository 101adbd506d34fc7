"""The sections that a report has for each image: their numbers, their figures and the data of their HTML template."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from d2_maskrcnn.evaluation.outcomes import MATCH_IOU
from d2_maskrcnn.inspection import activations, anchors, boxes, conclusions, masks, result
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.visualization.figures import encode_png, png

MASK_LIMIT = 24
GRID_LIMIT = 20  # rows and columns


@dataclass(frozen=True)
class Section:
    """One section; its functions get the observation and the score threshold.

    Attributes:
        name: of the section and of its template, ``<name>.html.jinja``.
        title: heading.
        numbers: content of the JSON file.
        figures: name -> PNG file.
        context: variables of the template.
    """

    name: str
    title: str
    numbers: Callable[[Observation, float], Any]
    figures: Callable[[Observation, float], dict[str, bytes]]
    context: Callable[[Observation, float], dict[str, Any]]


def _anchor_context(seen: Observation, threshold: float) -> dict[str, Any]:
    findings = anchors.inspect_anchors(seen)
    return {
        "findings": findings,
        "conclusions": conclusions.about_anchors(findings),
        "level_scene": anchors.level_scene(seen),
        "label_scene": anchors.label_scene(seen),
        "proposal_scene": anchors.proposal_scene(seen),
    }


def _box_context(seen: Observation, threshold: float) -> dict[str, Any]:
    findings = boxes.inspect_boxes(seen)
    return {
        "findings": findings,
        "conclusions": conclusions.about_boxes(findings),
        "refinement_scene": boxes.refinement_scene(seen),
        "level_scene": boxes.level_scene(seen),
    }


def _mask_context(seen: Observation, threshold: float) -> dict[str, Any]:
    findings = masks.inspect_masks(seen)
    targets = masks.mask_targets(seen)
    return {
        "conclusions": conclusions.about_masks(findings),
        "total": len(findings),
        "masks": [(finding, masks.strip(finding, seen.original)) for finding in findings[:MASK_LIMIT]],
        "targets": [(target, masks.target_pair(target, seen.image)) for target in targets],
        "steps": masks.STEPS,
    }


def _activation_context(seen: Observation, threshold: float) -> dict[str, Any]:
    grids = activations.channel_grids(seen)
    return {
        "layers": [(layer, grids[layer.name]) for layer in activations.inspect_activations(seen)],
        "unused": activations.unused_layers(seen),
        "numbers": activations.numbers,
    }


def _result_context(seen: Observation, threshold: float) -> dict[str, Any]:
    findings = result.inspect_result(seen, threshold)
    return {
        "findings": findings,
        "conclusions": conclusions.about_result(findings),
        "grid": iou_grid(seen, findings),
        "scene": result.result_scene(seen, threshold),
        "match_iou": MATCH_IOU,
    }


@dataclass(frozen=True)
class GridCell:
    """IoU of a detection and an object; ``kind`` is ``match``, ``wrong`` (another class, IoU enough) or ""."""

    iou: float
    kind: str


def iou_grid(seen: Observation, findings: result.ResultFindings, limit: int = GRID_LIMIT) -> dict[str, Any] | None:
    """Arrange the IoU of the first detections (rows) with the first objects (columns); None if there are none."""
    ground_truth = seen.ground_truth
    if ground_truth is None or findings.overlaps is None or findings.overlaps.size == 0:
        return None
    rows = []
    for item, ious in zip(findings.outcomes[:limit], findings.overlaps[:limit, :limit].tolist(), strict=True):
        cells = []
        for index, iou in enumerate(ious):
            same = seen.class_name(int(ground_truth.classes[index])) == item.class_name
            kind = "" if iou < MATCH_IOU else "match" if same else "wrong"
            cells.append(GridCell(iou, kind))
        rows.append((f"{item.class_name} {item.score:.2f}", cells))
    columns = [seen.class_name(int(cls)) for cls in ground_truth.classes[:limit]]
    return {"columns": columns, "rows": rows, "detections": len(findings.outcomes), "objects": len(ground_truth)}


def _pngs(draw: Callable[[Observation], dict[str, Any]]) -> Callable[[Observation, float], dict[str, bytes]]:
    return lambda seen, _: {name: png(figure) for name, figure in draw(seen).items()}


SECTIONS = (
    Section(
        "result",
        "The final result",
        lambda seen, threshold: result.inspect_result(seen, threshold).as_dict(),
        lambda seen, threshold: {name: png(figure) for name, figure in result.draw_result(seen, threshold).items()},
        _result_context,
    ),
    Section(
        "anchors",
        "Anchors and proposals",
        lambda seen, _: anchors.inspect_anchors(seen).as_dict(),
        _pngs(anchors.draw_anchors),
        _anchor_context,
    ),
    Section(
        "boxes",
        "Box refinement",
        lambda seen, _: boxes.inspect_boxes(seen).as_dict(),
        _pngs(boxes.draw_boxes),
        _box_context,
    ),
    Section(
        "masks",
        "Masks",
        lambda seen, _: [finding.as_dict() for finding in masks.inspect_masks(seen)],
        _pngs(masks.draw_masks),
        _mask_context,
    ),
    Section(
        "activations",
        "Activations",
        lambda seen, _: [vars(layer) for layer in activations.inspect_activations(seen)],
        lambda seen, _: {name: encode_png(grid) for name, grid in activations.channel_grids(seen).items()},
        _activation_context,
    ),
)
