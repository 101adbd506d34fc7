"""Records what every stage of the model computed, without patching the model.

    with record_stages() as stages:
        model(batched_inputs)
    stages.features["p2"], stages.proposals[0], ...

or ``model(batched_inputs, stages=stages)``. The stages call :func:`active_stages` at fixed places; where nothing
records, that is one look at a context variable and nothing is kept.

Shape shorthand: N images, L feature levels, A anchors at a position, R anchors of all levels of an image, M
regions of all images, K foreground classes (class K is the background), C channels. "Network's frame": pixels of
the resized image that the model was given, padding removed. All boxes are XYXY in that frame unless said otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from detectron2.structures import Instances


@dataclass
class Stages:
    """Intermediate results of the latest forward pass; lists are empty and tensors None for stages that did not run.

    Tensors are detached but not copied: treat them as read-only. A new forward pass replaces them.

    Input
        images: (N, 3, H, W), normalised and padded. image_sizes: (height, width) of each image without padding.
    Backbone
        bottom_up: ``stem``, ``res2`` ... -> (N, C, H/stride, W/stride). features: ``p2`` ... ``p6`` likewise.
    Region proposal network
        anchors: for each level (Hi*Wi*A, 4). rpn_logits: for each level (N, Hi*Wi*A). rpn_deltas: (N, Hi*Wi*A, 4).
        topk_anchors: for each level (N, k) indices into that level's anchors, best score first.
        topk_boxes: for each level (N, k, 4), the same anchors refined by their deltas, not yet clipped.
        clipped_proposals: for each image, proposals of all levels clipped to the image, too small ones removed;
        fields ``proposal_boxes``, ``objectness_logits``, ``level`` (index into the levels), ``anchor`` (index into
        its level's anchors).
        proposals: for each image those that non-maximum suppression kept, best first, with the same fields.
    Region heads
        rois: for each image the regions given to the box head (in training: sampled, with ``gt_classes``,
        ``gt_boxes`` and ``gt_index``). roi_levels: (M,) index of the level that each was pooled from. box_pooled: (M,
        C, P, P).
        class_logits: (M, K + 1). box_deltas: (M, 4K), or (M, 4) when class-agnostic.
        class_probs: for each image (R, K + 1). decoded_boxes: for each image (R, K or 1, 4), before clipping.
        candidates: for each image what passed the score threshold, clipped, before non-maximum suppression; fields
        ``pred_boxes``, ``scores``, ``pred_classes``, ``roi`` (index into that image's rois).
        kept_candidates: for each image the indices into ``candidates`` that became detections, best score first.
        mask_levels: (M,) and mask_pooled: (M, C, P, P) of the boxes whose masks are predicted. mask_logits: (M, K or
            1, 28, 28).
        detections: for each image, network's frame, ``pred_masks`` (n, 1, 28, 28) being probabilities inside each
            box.
    Training labels
        anchor_labels: for each image (R,) int8 over all levels' anchors: 1 object, 0 background, -1 neither.
        sampled_anchor_labels: the same after sampling; the rest is -1. anchor_matches: for each image (R,) index of
            the annotated box.
        roi_labels: for each image the class of every proposal before sampling (K background, -1 ignored); the
        image's annotated boxes come last if they are appended. mask_targets: (F, 28, 28) bool of the foreground
        regions.
        losses: name -> scalar.
    Output
        results: for each image the detections in the output's frame (``height`` x ``width`` asked for),
            ``pred_masks`` bool.
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
    anchor_labels: list[torch.Tensor] = field(default_factory=list)
    sampled_anchor_labels: list[torch.Tensor] = field(default_factory=list)
    anchor_matches: list[torch.Tensor] = field(default_factory=list)
    roi_labels: list[torch.Tensor] = field(default_factory=list)
    mask_targets: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    results: list[Instances] = field(default_factory=list)

    def record(self, **values: Any) -> None:
        """Keeps ``values`` under their names.

        Raises:
            AttributeError: a name that is no field of this class.
        """
        for name, value in values.items():
            if name not in self.__dataclass_fields__:
                raise AttributeError(f"{name!r} is no stage; the stages are {', '.join(self.__dataclass_fields__)}")
            setattr(self, name, _detach(value))

    def append(self, **values: Any) -> None:
        """Adds each value to the list of that name: for stages that work image by image."""
        for name, value in values.items():
            getattr(self, name).append(_detach(value))

    def clear(self) -> None:
        """Forgets everything that was recorded."""
        empty = Stages()
        for stage in fields(self):
            setattr(self, stage.name, getattr(empty, stage.name))


_ACTIVE: ContextVar[Stages | None] = ContextVar("active_stages", default=None)


def active_stages() -> Stages | None:
    """The recorder that is switched on in this context, or None."""
    return _ACTIVE.get()


@contextmanager
def record_stages(stages: Stages | None = None) -> Iterator[Stages]:
    """Switches recording on inside the ``with`` block and yields the recorder (a new one unless given)."""
    stages = Stages() if stages is None else stages
    token = _ACTIVE.set(stages)
    try:
        yield stages
    finally:
        _ACTIVE.reset(token)


def _detach(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, list):
        return [_detach(item) for item in value]
    if isinstance(value, dict):
        return {key: _detach(item) for key, item in value.items()}
    return value
