"""Conclude from the numbers of a section what to change, in sentences."""

from itertools import pairwise

import numpy as np

from d2_maskrcnn.inspection.anchors import AnchorFindings
from d2_maskrcnn.inspection.boxes import BoxFindings
from d2_maskrcnn.inspection.data import GOOD_IOU, DataFindings
from d2_maskrcnn.inspection.masks import MaskFinding
from d2_maskrcnn.inspection.result import ResultFindings

GOOD_MASK_IOU = 0.75
NOTABLE = 0.05  # difference of a recall, or share of boxes, that is worth a sentence


def about_result(findings: ResultFindings) -> list[str]:
    """Conclude from the outcomes which objects are missed, and whether another score threshold would help."""
    if not findings.detections:
        return ["There are no detections: check that the weights and the class count belong to this model and data."]
    if findings.ground_truth is None:
        return []
    misses, wrong = findings.counts["FN"], findings.counts["wrong class"]
    sentences = []
    if not findings.ground_truth:
        sentences.append("The image has no objects, so every detection is a false positive.")
    elif not misses and not wrong:
        sentences.append(f"All {findings.ground_truth} objects are detected.")
    else:
        text = f"{misses} of {findings.ground_truth} objects are not detected"
        if findings.below_threshold:
            text += f"; a lower score threshold would detect {findings.below_threshold} of them"
        sentences.append(f"{text}{f'; {wrong} get a wrong class' if wrong else ''}.")
    if findings.counts["FP"] and findings.ground_truth:
        text = f"{findings.counts['FP']} of {findings.shown} detections are false positives"
        if findings.duplicates:
            text += f", {findings.duplicates} of them on objects that are detected already"
            text += " (a lower MODEL.ROI_HEADS.NMS_THRESH_TEST removes more of these)"
        sentences.append(f"{text}.")
    return sentences


def about_anchors(findings: AnchorFindings) -> list[str]:
    """Conclude from labels and recall: objects without anchors, and the step at which recall is lost."""
    sentences = []
    if findings.uncovered:
        sentences.append(
            f"{findings.uncovered} of {findings.ground_truth} objects have no anchor with an IoU of 0.5 or more: "
            "change the image size (INPUT.MIN_SIZE_TRAIN, INPUT.MIN_SIZE_TEST) or MODEL.ANCHOR_GENERATOR."
        )
    recalls = [(step.name, step.recall["0.50"]) for step in findings.steps if step.recall is not None]
    if recalls:
        loss, name = max((before - after, name) for (_, before), (name, after) in pairwise(recalls[2:]))
        last = recalls[-1][1]
        sentences.append(f"The proposals overlap {last:.0%} of the objects by an IoU of 0.5 or more.")
        if loss > NOTABLE:
            sentences.append(f'{loss:.0%} are lost at the step "{name}".')
    return sentences


def about_boxes(findings: BoxFindings) -> list[str]:
    """Conclude from the pooling levels and from the recall after refinement."""
    sentences = []
    used = [name for name, count in findings.per_level.items() if count]
    if findings.regions and len(used) <= 2 < len(findings.per_level):
        lowest = used[0] == next(iter(findings.per_level))
        change = "Raise INPUT.MIN_SIZE_TEST" if lowest else "Lower INPUT.MIN_SIZE_TEST"
        sentences.append(
            f"All proposals are pooled from {' and '.join(used)}, so the other levels are unused. {change}, or change "
            "the anchor sizes, if the objects are not this size."
        )
    before, after = findings.recall["proposals"], findings.recall["detections"]
    if before is not None and after is not None:
        lost = before["0.50"] - after["0.50"]
        if lost > NOTABLE:
            sentences.append(
                f"{lost:.0%} of the objects have a proposal but no detection: their scores are below the threshold "
                "(MODEL.ROI_HEADS.SCORE_THRESH_TEST), or NMS removed them."
            )
        if after["0.75"] - before["0.75"] > NOTABLE:
            sentences.append(
                f"Refinement raises the recall at IoU 0.75 from {before['0.75']:.0%} to {after['0.75']:.0%}."
            )
    return sentences


def about_masks(findings: list[MaskFinding]) -> list[str]:
    """Conclude from the IoU of the masks with the ground truth."""
    ious = [finding.iou for finding in findings if finding.iou is not None]
    if not ious:
        return []
    poor = sum(iou < GOOD_MASK_IOU for iou in ious)
    mean = f"The mean IoU of {len(ious)} masks with the ground truth is {np.mean(ious):.2f}"
    return [f"{mean}; {poor} of them are below {GOOD_MASK_IOU}."]


def about_data(findings: DataFindings) -> list[str]:
    """Conclude from box sizes and the best anchor IoU."""
    sentences = []
    smallest = min(anchor["size"] for anchor in findings.anchors)
    small = float((findings.sqrt_areas < smallest / 2).mean()) if findings.objects else 0.0
    if small > NOTABLE:
        sentences.append(
            f"{small:.0%} of the boxes are smaller than half the smallest anchor ({smallest:g} pixels): raise "
            "INPUT.MIN_SIZE_TRAIN or use smaller anchors."
        )
    if findings.covered is not None and findings.covered < 1 - NOTABLE:
        sentences.append(
            f"No anchor shape fits {1 - findings.covered:.0%} of the boxes with an IoU of {GOOD_IOU} or more: change "
            "MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS."
        )
    absent = [name for name, count in findings.categories.items() if not count]
    if absent:
        sentences.append(
            f"{len(absent)} categories have no objects: {', '.join(absent[:5])}{' ...' if absent[5:] else ''}."
        )
    return sentences or ["The anchors fit the boxes, and every category has objects."]
