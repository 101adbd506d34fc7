"""The report's sections as HTML, one function for each part."""

import numpy as np

from d2_maskrcnn.inspection import activations, anchors, boxes, data, masks, result
from d2_maskrcnn.inspection import weights as weight_part
from d2_maskrcnn.inspection.markup import (
    bars,
    escape,
    flags,
    fold,
    image,
    named_bars,
    number,
    percent,
    table,
    viewer,
)
from d2_maskrcnn.inspection.observation import Observation
from d2_maskrcnn.inspection.statistics import histogram

MASK_LIMIT = 24
PERHAPS_UNTRAINED = (
    '<p class="soft">Perhaps untrained: how these weights were drawn at first is not known, and their distribution is '
    "still that of a fresh initialisation. So are frozen ones, and those that a short training has changed little. "
    "Comparing with an early checkpoint (--compare) tells which.</p>"
)
NOT_ANNOTATED = (
    '<p class="soft">No annotation of this image was found: labels, recall and differences are left out.</p>'
)


def anchor_section(observation: Observation, key: str) -> str:
    """Stage 1."""
    found = anchors.inspect_anchors(observation)
    labelled = observation.training is not None
    headers = ["level", "stride", "positions", "anchors", "sizes (w x h)"]
    headers += ["positive", "neutral", "negative", "drawn +", "drawn -"] if labelled else []
    rows = []
    for level in found.levels:
        sizes = ", ".join(f"{w:.0f}x{h:.0f}" for w, h in level.sizes)
        row: list[object] = [level.name, level.stride, f"{level.grid[0]} x {level.grid[1]}", level.anchors, sizes]
        if labelled:
            row += [level.positive, level.neutral, level.negative, level.sampled_positive, level.sampled_negative]
        rows.append(row)
    levels = [level.name for level in found.levels]
    steps = [
        [s.name, s.count, *s.per_level, *(percent(s.recall[k] if s.recall else None) for k in ("0.50", "0.75"))]
        for s in found.steps
    ]
    parts = [
        "<p>Anchors are the boxes that the region proposal network starts from. It scores all of them, refines the "
        "best of each level, clips them to the image and drops those that overlap a better one.</p>",
        "" if labelled else NOT_ANNOTATED,
        table(headers, rows),
        viewer(anchors.level_scene(observation), f"{key}-anchor-levels", f"{key}-image"),
        viewer(anchors.label_scene(observation), f"{key}-anchor-labels", f"{key}-image") if labelled else "",
        "<p>What is left after each step, and how many of the annotated boxes are still overlapped by some box.</p>",
        table(["step", "boxes", *levels, "recall at IoU .5", "at IoU .75"], steps),
        viewer(anchors.proposal_scene(observation), f"{key}-proposals", f"{key}-image"),
    ]
    return "".join(parts)


def box_section(observation: Observation, key: str) -> str:
    """Stage 2."""
    found = boxes.inspect_boxes(observation)
    counts = [
        ["proposals", found.regions, *_recall(found, "proposals")],
        ["of these, an object is likelier than background", found.foreground_regions, "-", "-"],
        ["(proposal, class) pairs above the score threshold", found.candidates, *_recall(found, "candidates")],
        ["kept by per-class NMS: the detections", found.kept, *_recall(found, "detections")],
    ]
    rows = [
        [f"{d.class_name} {d.score:.3f}", d.roi, d.level, d.moved, d.shift,
         " ".join(f"{v:.0f}" for v in d.before), " ".join(f"{v:.0f}" for v in d.after)]
        for d in found.detections
    ]  # fmt: skip
    headers = ["detection", "proposal", "pooled from", "IoU before/after", "moved, pixels", "before", "after"]
    detections = table(headers, rows) if rows else "<p>No detection at all: nothing passed the score threshold.</p>"
    return "".join(
        [
            "<p>The second stage gives every proposal a class, a score and a better box. Pairs of proposal and class "
            "that score too low are dropped, then, class by class, those that overlap a better one. Proposals are "
            "dotted, what became of them is solid, and arrows join the centres.</p>",
            table(["step", "number", "recall at IoU .5", "at IoU .75"], counts),
            viewer(boxes.refinement_scene(observation), f"{key}-refinement", f"{key}-image"),
            "<p>Features of a proposal are pooled from one level of the pyramid, chosen by the proposal's size.</p>",
            table(["level", "proposals pooled from it"], list(found.per_level.items())),
            viewer(boxes.level_scene(observation), f"{key}-roi-levels", f"{key}-image"),
            fold(f"All {len(rows)} detections", detections, opened=len(rows) <= 12),
        ]
    )


def _recall(found: boxes.BoxFindings, step: str) -> list[str]:
    values = found.recall[step]
    return [percent(values[k] if values else None) for k in ("0.50", "0.75")]


def mask_section(observation: Observation, key: str) -> str:
    """Stage 3."""
    found = masks.inspect_masks(observation)
    shown = found[:MASK_LIMIT]
    if not found:
        content = "<p>No detection, so no mask.</p>"
    else:
        content = (
            "<p>The mask head gives each detection 28x28 probabilities inside its box. They are resized to the box, "
            "cut at 0.5 and placed in the image. "
            f"The best {len(shown)} of {len(found)} detections, best score first.</p>"
        ) + "".join(['<div class="masks">', *(_mask_card(observation, finding) for finding in shown), "</div>"])
    targets = masks.mask_targets(observation)
    if targets:
        content += (
            f"<h4>Mask targets of training</h4><p>What training asks of its first {len(targets)} foreground regions: "
            "the annotation, cut out by the region's box and sampled at 28x28.</p>"
        )
        cards = (_target_card(observation, target) for target in targets)
        content += f'<div class="targets">{"".join(cards)}</div>'
    return content


def _target_card(observation: Observation, target: masks.MaskTarget) -> str:
    pair = image(masks.target_pair(target, observation.image), f"region of a {target.class_name} and its mask target")
    return f"<figure>{pair}<figcaption>{escape(target.class_name)}</figcaption></figure>"


def _mask_card(observation: Observation, finding: masks.MaskFinding) -> str:
    label = f"{finding.class_name} {finding.score:.2f}"
    iou = "not annotated" if finding.iou is None else f"IoU {finding.iou:.2f} with the annotation"
    strip = masks.strip(finding, observation.image, observation.output_size)
    steps = "".join(f"<span>{name}</span>" for name in masks.STEPS)
    alt = f"{label}: {', '.join(masks.STEPS)}"
    return (
        f"<figure>{image(strip, alt)}"
        f'<div class="steps">{steps}</div><figcaption><b>{escape(label)}</b> · {finding.pixels:,} pixels · {iou}'
        "</figcaption></figure>"
    )


def activation_section(observation: Observation, key: str) -> str:
    """Stage 4."""
    described = {layer.name: layer for layer in activations.inspect_activations(observation)}
    flagged = [layer for layer in described.values() if layer.flags]
    cards = []
    for name, grid in activations.channel_grids(observation).items():
        layer = described[name]
        shape = " x ".join(map(str, layer.shape))
        dead = f", {layer.dead_channels} of {layer.channels} channels all zero" if layer.dead_channels else ""
        cards.append(
            f"<figure>{image(grid, f'channels of {name}')}<figcaption>"
            f'<b>{escape(name)}</b> <span class="soft">{shape}</span><br>{escape(activations.numbers(layer))}{dead}'
            f"{f', {layer.nan} NaN, {layer.inf} Inf' if layer.nan or layer.inf else ''}<br>{flags(layer.flags)}"
            "</figcaption></figure>"
        )
    words = "".join(f"<li>{escape(layer.name)}: {flags(layer.flags)}</li>" for layer in flagged)
    unused = activations.unused_layers(observation)
    return "".join(
        [
            "<p>Up to 16 channels of each layer, spread evenly, each from its lowest (black) to its highest value; NaN "
            "and Inf are magenta. Of layers that work on regions, the first region is shown.</p>",
            f"<ul>{words}</ul>" if words else "<p>No layer is dead, saturated or holds NaN or Inf.</p>",
            f'<p class="soft">Did not run in this pass: {escape(", ".join(unused))}.</p>' if unused else "",
            f'<div class="layers">{"".join(cards)}</div>',
        ]
    )


def result_section(observation: Observation, key: str, threshold: float) -> str:
    """Stage 7."""
    found = result.inspect_result(observation, threshold)
    parts = [f"<p>{found.shown} of {found.detections} detections score {threshold:.2f} or more.</p>"]
    if found.detections == 0:
        parts.append("<p>The model found nothing in this image.</p>")
    parts.append(viewer(result.result_scene(observation, threshold), f"{key}-final-result", f"{key}-image"))
    if observation.truth is None:
        return "".join([*parts, NOT_ANNOTATED])
    parts.append(
        f"<p>{found.annotated} annotated objects. A detection is <b>right</b> if it overlaps one of its class by an "
        f"IoU of {result.MATCH_IOU} or more that no better-scored one has taken; on an object of another class it is "
        "<b>confused</b>, in a crowd region <b>ignored</b>, else <b>false</b>.</p>"
    )
    parts.append(table(["difference", "number"], list(found.counts.items())))
    rows = [[f"{v.class_name} {v.score:.2f}", v.verdict, v.truth_class, v.iou] for v in found.verdicts]
    truth = observation.truth
    rows += [["-", "missed", observation.class_name(int(truth.classes[g])), None] for g in found.missed]
    if rows:
        parts.append(fold(f"All {len(rows)}", table(["detection", "is", "annotated", "IoU"], rows), len(rows) <= 12))
    return "".join(parts)


def weight_section(found: weight_part.WeightFindings) -> str:
    """Stage 5."""
    flagged = found.flagged
    parts = [
        f"<p>{len(found.tensors)} parameters and buffers of {escape(found.name)}, {found.parameters:,} values.</p>"
    ]
    if found.other:
        different = [f"{len(found.only_here)} only here", f"{len(found.only_there)} only there",
                     f"{len(found.other_shape)} of another shape"]  # fmt: skip
        parts.append(f"<p>Compared with {escape(found.other)}: {', '.join(different)}. Change is the L2 norm of the "
                     "difference, relative to the other's norm.</p>")  # fmt: skip
    if flagged:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
        parts.append(f"<p>Flagged: {kinds}.</p>")
        if "perhaps untrained" in found.kinds:
            parts.append(PERHAPS_UNTRAINED)
        parts.append('<p><label><input type="checkbox" id="only-flagged"> show only the flagged ones</label> '
                     f"({len(flagged)})</p>")  # fmt: skip
    else:
        parts.append("<p>None is dead, exploding, untrained or holds NaN or Inf.</p>")
    headers = ["tensor", "shape", "histogram", "min", "max", "mean", "std", "zeros"]
    headers += ["change"] if found.other else []
    for group, tensors in weight_part.by_group(found).items():
        rows = [_weight_row(tensor, found.other is not None) for tensor in tensors]
        bad = sum(bool(tensor.flags) for tensor in tensors)
        extra = flags([f"{bad} flagged"]) if bad else ""
        content = table(headers, rows, raw=(0, 2), css="weights")
        parts.append(
            fold(f"{group} ({len(tensors)})", content, extra=extra).replace("<details", '<details class="group"', 1)
        )
    return "".join(parts)


def _weight_row(tensor: weight_part.TensorFindings, compared: bool) -> list[object]:
    short = tensor.name.removeprefix(tensor.group + ".")
    row: list[object] = [
        f'<span title="{escape(tensor.name)}">{escape(short)}</span>{flags(tensor.flags)}',
        " x ".join(map(str, tensor.shape)) or "1",
        bars(tensor.edges, tensor.counts, tensor.name),
        tensor.min, tensor.max, tensor.mean, tensor.std, percent(tensor.zeros),
    ]  # fmt: skip
    return [*row, *([tensor.change] if compared else [])]


def data_section(found: data.DataFindings, samples: list[str]) -> str:
    """What the network is fed; ``samples`` are viewers of augmented images."""
    parts = [
        f"<p>{found.images:,} images ({found.empty_images:,} without objects), {found.objects:,} objects, "
        f"{found.crowds:,} crowd regions. Sizes are in pixels of the network's input.</p>",
        f'<h4>As training gets them</h4><div class="samples">{"".join(samples)}</div>' if samples else "",
        "<h4>Objects of each category</h4>",
        named_bars(found.categories),
        "<h4>Boxes</h4>",
    ]
    for name, values, unit in (
        ("Square root of the area", found.sqrt_areas, "pixels"),
        ("Height / width", np.log2(found.ratios), "log2"),
        ("IoU with the best anchor shape", found.best_anchor_iou, "IoU"),
    ):
        if len(values):
            edges, counts = histogram(values, data.BINS)
            numbers = data.quantiles(values)
            text = f"{unit}: {number(numbers['min'])} to {number(numbers['max'])}, median {number(numbers['median'])}"
            parts.append(f"<p>{name} ({text})<br>{bars(edges, counts, name, (480, 80))}</p>")
    parts.append(
        f"<p>An anchor shape fits {percent(found.covered)} of the boxes with an IoU of {data.GOOD_IOU} or more.</p>"
    )
    rows = [[a["level"], a["size"], a["ratio"], a["boxes"]] for a in found.anchors]
    parts.append(fold("Which anchor shape fits best", table(["level", "size", "height / width", "boxes"], rows)))
    sizes = list(found.image_sizes.items())
    parts.append(fold(f"Image sizes ({len(sizes)})", table(["width x height", "images"], sizes[:50])))
    return "".join(parts)
