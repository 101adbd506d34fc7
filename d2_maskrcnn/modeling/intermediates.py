"""Intermediate tensors of a forward pass, as one typed object.

    intermediates = trace_inference(model, batched_inputs)
    intermediates.features["p2"], intermediates.proposals[0]

The model itself records nothing. A trace calls the same components as ``model(batched_inputs)``, keeps what they
return, and reads the outputs of their submodules with forward hooks.

Shape shorthand: N images, A anchors per position, R anchors of all levels of an image, M regions of all images, F
foreground regions among them, K foreground classes (class K is the background), C channels, P the pooled size. All
boxes are XYXY in pixels of the network's input image (resized, without padding) unless stated otherwise.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.box_coding import clip_boxes
from d2_maskrcnn.modeling.meta_arch import Inputs, MaskRCNN
from d2_maskrcnn.modeling.roi_heads.roi_heads import BoxPredictions, MaskRCNNROIHeads
from d2_maskrcnn.modeling.rpn.rpn import MaskRCNNRPN, RPNOutput
from detectron2.structures import Boxes, Instances


@dataclass
class Intermediates:
    """Intermediate results of one forward pass; None or empty for parts that did not run. Treat them as read-only.

    Attributes:
        images: (N, 3, H, W), normalized and padded. image_sizes: (height, width) of each image without padding.
        bottom_up: ``stem``, ``res2``, ... -> (N, C, H/stride, W/stride). features: ``p2`` ... ``p6`` likewise.
        anchors: per level (Hi*Wi*A, 4). rpn_logits: per level (N, Hi*Wi*A). rpn_deltas: per level (N, Hi*Wi*A, 4).
        topk_anchors: per level (N, k), indices of the level's top-scored anchors, best first.
        topk_boxes: per level (N, k, 4), these anchors refined by their deltas, not yet clipped.
        clipped_proposals: per image the refined anchors of all levels, clipped to the image, without those that are
            too small: ``proposal_boxes``, ``objectness_logits``, ``level`` (index) and ``anchor`` (index in its level).
        proposals: per image those that non-maximum suppression kept, best first, with the same fields.
        rois: per image the regions given to the box head; for the losses the sampled proposals, with ``gt_classes``,
            ``gt_boxes`` and ``gt_index``.
        roi_levels: (M,), index of the level that each region was pooled from. box_pooled: (M, C, P, P).
        class_logits: (M, K + 1). box_deltas: (M, 4K), or (M, 4) if class-agnostic.
        class_probs: per image (R, K + 1). decoded_boxes: per image (R, K or 1, 4), not yet clipped.
        candidates: per image the boxes that exceed the score threshold, clipped: ``pred_boxes``, ``scores``,
            ``pred_classes`` and ``roi`` (index in that image's ``rois``).
        kept_candidates: per image the indices into ``candidates`` of the detections, best first.
        mask_levels: (M,) and mask_pooled: (M, C, P, P), of the boxes whose masks are predicted.
        mask_logits: (M, K or 1, 2P, 2P).
        detections: per image; ``pred_masks`` (n, 1, 2P, 2P) are probabilities inside each box.
        results: per image the detections in the frame of the output image, ``pred_masks`` bool.
        anchor_labels: per image (R,) int8: 1 object, 0 background, -1 ignored.
        sampled_anchor_labels: the same, -1 for anchors that were not sampled.
        anchor_matches: per image (R,), index of the ground-truth box with the highest IoU.
        roi_labels: per image the class of every proposal before sampling: K background, -1 ignored; ground-truth boxes
            that were appended to the proposals come last.
        mask_targets: (F, 2P, 2P) bool.
        losses: name -> weighted scalar.
    """

    images: torch.Tensor | None = None
    image_sizes: list[tuple[int, int]] = field(default_factory=list)
    bottom_up: dict[str, torch.Tensor] = field(default_factory=dict)
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    anchors: list[torch.Tensor] = field(default_factory=list)
    rpn_logits: list[torch.Tensor] = field(default_factory=list)
    rpn_deltas: list[torch.Tensor] = field(default_factory=list)
    topk_anchors: list[torch.Tensor] = field(default_factory=list)
    topk_boxes: list[torch.Tensor] = field(default_factory=list)
    clipped_proposals: list[Instances] = field(default_factory=list)
    proposals: list[Instances] = field(default_factory=list)
    rois: list[Instances] = field(default_factory=list)
    roi_levels: torch.Tensor | None = None
    box_pooled: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    box_deltas: torch.Tensor | None = None
    class_probs: list[torch.Tensor] = field(default_factory=list)
    decoded_boxes: list[torch.Tensor] = field(default_factory=list)
    candidates: list[Instances] = field(default_factory=list)
    kept_candidates: list[torch.Tensor] = field(default_factory=list)
    mask_levels: torch.Tensor | None = None
    mask_pooled: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    detections: list[Instances] = field(default_factory=list)
    results: list[Instances] = field(default_factory=list)
    anchor_labels: list[torch.Tensor] = field(default_factory=list)
    sampled_anchor_labels: list[torch.Tensor] = field(default_factory=list)
    anchor_matches: list[torch.Tensor] = field(default_factory=list)
    roi_labels: list[torch.Tensor] = field(default_factory=list)
    mask_targets: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)


@torch.no_grad()
def trace_inference(model: MaskRCNN, batched_inputs: Inputs) -> Intermediates:
    """Run ``model.inference(batched_inputs)`` and return all that it computes.

    Raises:
        UserError: the model's RPN or ROI heads are not this plugin's.
    """
    rpn, heads = _components(model)
    with record_outputs(_watched(model)) as outputs:
        images = model.preprocess_image(batched_inputs)
        features = model.backbone(images.tensor)
        proposed = rpn.propose(images.image_sizes, features)
        predictions, selection = heads.detect(features, proposed.selection.proposals)
    trace = _trace(model, images.tensor, features, proposed, predictions, outputs)
    trace.class_probs, trace.decoded_boxes = selection.class_probs, selection.decoded_boxes
    trace.candidates, trace.kept_candidates = selection.candidates, selection.kept
    trace.detections = selection.detections
    if heads.mask_head is not None:
        trace.mask_levels = _levels(heads.mask_pooler, [item.pred_boxes for item in selection.detections])
    trace.results = [output["instances"] for output in model.postprocess(selection.detections, batched_inputs)]
    return trace


@torch.no_grad()
def trace_losses(model: MaskRCNN, batched_inputs: Inputs, seed: int = 0) -> Intermediates:
    """Run ``model.losses(batched_inputs)`` and return all that it computes, without gradients.

    Args:
        seed: of the random sampling of anchors and proposals. With 0 the losses are those of ``model.losses`` in
            evaluation mode.

    Raises:
        UserError: the model's RPN or ROI heads are not this plugin's, or an input has no annotations.
        FloatingPointError: the RPN predicts infinite or NaN boxes.
    """
    rpn, heads = _components(model)
    generator = torch.Generator(model.device).manual_seed(seed)
    with record_outputs(_watched(model)) as outputs:
        images, targets = model.preprocess_image(batched_inputs), model.ground_truth(batched_inputs)
        features = model.backbone(images.tensor)
        proposed = rpn.propose(images.image_sizes, features, targets, generator)
        training = heads.compute_losses(features, proposed.selection.proposals, targets, generator)
    trace = _trace(model, images.tensor, features, proposed, training.predictions, outputs)
    trace.anchor_labels = [image.labels for image in proposed.labels]
    trace.sampled_anchor_labels = [image.sampled for image in proposed.labels]
    trace.anchor_matches = [image.matches for image in proposed.labels]
    trace.roi_labels = training.classes
    trace.mask_targets = training.mask_targets
    if training.mask_rois is not None:
        trace.mask_levels = _levels(heads.mask_pooler, [item.proposal_boxes for item in training.mask_rois])
    trace.losses = {**training.losses, **proposed.losses}
    return trace


@contextmanager
def record_outputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Record the output tensors of modules inside the ``with`` block, by forward hooks.

    A module that runs once per level has one output per level. The tensors are detached but not copied: an output that
    a later module changes in place (a ReLU) is recorded changed.

    Args:
        modules: name -> module.

    Yields:
        name -> outputs, empty for modules that were not called.
    """
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: outputs[name].extend(_tensors(output))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        yield outputs


def _tensors(output: Any) -> list[torch.Tensor]:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    return [value.detach() for value in values if isinstance(value, torch.Tensor)]


def _components(model: MaskRCNN) -> tuple[MaskRCNNRPN, MaskRCNNROIHeads]:
    rpn, heads = model.proposal_generator, model.roi_heads
    if not isinstance(rpn, MaskRCNNRPN) or not isinstance(heads, MaskRCNNROIHeads):
        raise UserError(
            f"the proposal generator {type(rpn).__name__} and the ROI heads {type(heads).__name__} do not return their "
            "intermediate tensors: expected MaskRCNNRPN and MaskRCNNROIHeads, or subclasses"
        )
    return rpn, heads


def _watched(model: MaskRCNN) -> dict[str, nn.Module]:
    """Return the modules whose outputs no component returns."""
    bottom_up = getattr(model.backbone, "bottom_up", None)
    watched = {} if bottom_up is None else {f"bottom_up.{name}": part for name, part in bottom_up.named_children()}
    heads = {name: getattr(model.roi_heads, name) for name in ("box_pooler", "mask_pooler", "mask_head")}
    return {**watched, **{name: module for name, module in heads.items() if module is not None}}


def _trace(
    model: MaskRCNN,
    images: torch.Tensor,
    features: dict[str, torch.Tensor],
    proposed: RPNOutput,
    predictions: BoxPredictions,
    outputs: dict[str, list[torch.Tensor]],
) -> Intermediates:
    """Gather what inference and losses have in common."""
    selection = proposed.selection
    clipped = [_clipped_proposals(proposed, index) for index in range(len(selection.proposals))]
    last = {name: tensors[-1] for name, tensors in outputs.items() if tensors}
    return Intermediates(
        images=images,
        image_sizes=[item.image_size for item in selection.proposals],
        bottom_up={name.split(".")[1]: tensor for name, tensor in last.items() if name.startswith("bottom_up.")},
        features=features,
        anchors=proposed.anchors,
        rpn_logits=proposed.logits,
        rpn_deltas=proposed.deltas,
        topk_anchors=selection.anchors,
        topk_boxes=selection.boxes,
        clipped_proposals=clipped,
        proposals=[item[kept] for item, kept in zip(clipped, selection.kept, strict=True)],
        rois=predictions.rois,
        roi_levels=_levels(model.roi_heads.box_pooler, [item.proposal_boxes for item in predictions.rois]),
        box_pooled=last["box_pooler"],
        class_logits=predictions.logits,
        box_deltas=predictions.deltas,
        mask_pooled=last.get("mask_pooler"),
        mask_logits=last.get("mask_head"),
    )


def _clipped_proposals(proposed: RPNOutput, index: int) -> Instances:
    """Return the candidates of image ``index`` as they were before non-maximum suppression."""
    selection = proposed.selection
    clipped, image_size = selection.clipped[index], selection.proposals[index].image_size
    boxes, logits, anchors = (
        torch.cat([level[index] for level in levels])[clipped]
        for levels in (selection.boxes, selection.logits, selection.anchors)
    )
    return Instances(
        image_size,
        proposal_boxes=Boxes(clip_boxes(boxes, image_size)),
        objectness_logits=logits,
        level=selection.levels()[clipped],
        anchor=anchors,
    )


def _levels(pooler: Any, boxes: list[Boxes]) -> torch.Tensor:
    levels: torch.Tensor = pooler.assign_levels(torch.cat([item.tensor for item in boxes]))
    return levels
