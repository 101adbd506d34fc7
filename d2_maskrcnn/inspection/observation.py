"""Run the model on one image and keep everything that it computes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.inspection.capture import captured_layers
from d2_maskrcnn.inspection.ground_truth import Record, Truth, truth_of
from d2_maskrcnn.modeling.intermediates import Intermediates, trace_inference, trace_losses
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.evaluation import inference_context
from detectron2.structures import Instances

T = TypeVar("T")


@dataclass
class Observation:
    """Everything that the model computed for one image.

    Attributes:
        name: of the image file.
        image: (H, W, 3) uint8 RGB, the network's input image before normalization: the network's frame.
        output_size: (height, width) of the image file: the output's frame.
        intermediates: of the inference pass. Boxes are in the network's frame, except those of ``results``.
        training: of a pass that computes the losses in evaluation mode: labels, targets and losses; None without
            annotations, or if that pass failed.
        truth: annotations in the output's frame, or None. truth_network: those that training would use, in the
            network's frame.
        layers: name -> outputs of that module, one per call.
        level_names: of the RPN's feature levels; the region heads use the first ``len(roi_level_names)``.
        seconds: duration of the inference pass.
        problem: why the pass that computes the losses failed, or "".
    """

    name: str
    image: np.ndarray
    output_size: tuple[int, int]
    intermediates: Intermediates
    training: Intermediates | None
    truth: Truth | None
    truth_network: Instances | None
    layers: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    level_names: Sequence[str] = ()
    roi_level_names: Sequence[str] = ()
    strides: Sequence[int] = ()
    class_names: Sequence[str] = ()
    seconds: float = 0.0
    problem: str = ""
    # Results of `once`; dataclasses.replace does not copy them.
    memo: dict[str, Any] = field(init=False, default_factory=dict, repr=False)

    def class_name(self, index: int) -> str:
        """Return the name of a class, or "class <index>" if it has none."""
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of ``make``, which is called the first time only."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    def gt_boxes(self) -> torch.Tensor:
        """Return the ground-truth boxes (G, 4) in the network's frame; (0, 4) without annotations."""
        if self.truth_network is None:
            return torch.zeros((0, 4))
        return self.truth_network.gt_boxes.tensor.float().cpu()


def observe(
    cfg: CfgNode,
    model: nn.Module,
    record: Record,
    class_names: Sequence[str] = (),
    layers: Sequence[str] | None = None,
) -> Observation:
    """Run ``model`` in evaluation mode: once for its detections and, if the image is annotated, once for its losses.

    Args:
        cfg: the config that the model was built from.
        model: its mode and weights do not change.
        record: dict of one image in Detectron2's standard dataset format, with or without ``annotations``.
        layers: names of the modules whose outputs are kept; None for :func:`default_layers`.

    Raises:
        UserError: the image cannot be read, the model has no such layer, or its RPN or ROI heads are not this plugin's.
    """
    sample, any_model = read_sample(cfg, record), model  # type: tuple[Record, Any]
    training, problem = None, ""
    with inference_context(model):
        with captured_layers(model, layers) as outputs:
            start = time.perf_counter()
            intermediates = trace_inference(any_model, [sample])
            seconds = time.perf_counter() - start
        if "instances" in sample:
            try:
                training = trace_losses(any_model, [sample])
            except FloatingPointError as error:  # the model has diverged, which is worth inspecting
                problem = str(error)
    rpn, heads = any_model.proposal_generator, any_model.roi_heads
    return Observation(
        name=Path(record["file_name"]).name,
        image=_as_rgb(sample["image"], cfg.INPUT.FORMAT),
        output_size=(record["height"], record["width"]),
        intermediates=intermediates,
        training=training,
        truth=truth_of(record),
        truth_network=sample.get("instances"),
        layers=dict(outputs),
        level_names=tuple(rpn.in_features),
        roi_level_names=tuple(heads.in_features),
        strides=tuple(rpn.anchor_generator.strides),
        class_names=tuple(class_names),
        seconds=seconds,
        problem=problem,
    )


def read_sample(cfg: CfgNode, record: Record) -> Record:
    """Return the model's input as in testing, with ``instances`` if the record has annotations."""
    mapper: Any = MaskRCNNMapper(cfg, is_train=False)
    mapper.is_train = "annotations" in record  # keep the annotations, but augment as in testing
    return mapper(record)


def _as_rgb(image: torch.Tensor, image_format: str) -> np.ndarray:
    """Convert (3, H, W) in the config's ``INPUT.FORMAT`` to (H, W, 3) uint8 RGB."""
    return np.asarray(
        detection_utils.convert_image_to_rgb(image.permute(1, 2, 0).numpy(), image_format), dtype=np.uint8
    )
