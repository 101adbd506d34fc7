"""One real forward pass of the real model over one image, with everything it computed on the way."""

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
from d2_maskrcnn.modeling.intermediates import Stages, record_stages
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.evaluation import inference_context
from detectron2.structures import Instances

T = TypeVar("T")


@dataclass
class Observation:
    """What the model made of one image.

    Attributes:
        name: of the image file.
        image: (H, W, 3) uint8 RGB, as the network got it but not normalised: the network's frame.
        output_size: (height, width) of the image file: the output's frame.
        stages: of the inference pass. Its boxes are in the network's frame but for ``results``.
        training: of a pass with annotations (the same weights and norms, nothing is learnt): labels, targets and
            losses; None without annotations.
        truth: annotations in the output's frame, or None. truth_network: those that training would use, in the
            network's frame.
        layers: name -> outputs of that module, one for each time it ran.
        level_names: of the RPN's feature levels; the region heads use the first ``len(roi_level_names)``.
        seconds: time of the inference pass.
        problem: what stopped the pass with annotations, or "".
    """

    name: str
    image: np.ndarray
    output_size: tuple[int, int]
    stages: Stages
    training: Stages | None
    truth: Truth | None
    truth_network: Instances | None
    layers: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    level_names: Sequence[str] = ()
    roi_level_names: Sequence[str] = ()
    strides: Sequence[int] = ()
    class_names: Sequence[str] = ()
    seconds: float = 0.0
    problem: str = ""
    # What was computed from this observation already; not copied by dataclasses.replace.
    memo: dict[str, Any] = field(init=False, default_factory=dict, repr=False)

    def class_name(self, index: int) -> str:
        """Name of a class, or its number."""
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"

    def once(self, name: str, make: Callable[[], T]) -> T:
        """The answer of ``make``, which is called the first time only."""
        if name not in self.memo:
            self.memo[name] = make()
        return self.memo[name]

    def gt_boxes(self) -> torch.Tensor:
        """(G, 4) annotated boxes in the network's frame; none without annotations."""
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
    """Runs ``model`` once in evaluation mode and, where the image is annotated, once more for its losses.

    Args:
        cfg: the config the model was built from.
        model: stays in the mode that it was in, and its weights as they are.
        record: of one image, in Detectron2's standard format; with ``annotations`` or without.
        layers: modules whose outputs are kept, by their names; None for a choice of the heads' layers.

    Raises:
        UserError: the image cannot be read, or the model has no such layer (the nearest one is named).
    """
    sample = read_sample(cfg, record)
    stages, training, any_model = Stages(), None, model  # type: tuple[Stages, Stages | None, Any]
    annotated, problem = "instances" in sample, ""
    with inference_context(model), torch.no_grad():
        with captured_layers(model, layers) as outputs:
            start = time.perf_counter()
            any_model([{key: value for key, value in sample.items() if key != "instances"}], stages=stages)
            seconds = time.perf_counter() - start
        if annotated:
            training = Stages()
            problem = _record_losses(any_model, sample, training)
    rpn, heads = any_model.proposal_generator, any_model.roi_heads
    return Observation(
        name=Path(record["file_name"]).name,
        image=_as_rgb(sample["image"], cfg.INPUT.FORMAT),
        output_size=(record["height"], record["width"]),
        stages=stages,
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


def _record_losses(model: Any, sample: Record, stages: Stages) -> str:
    """Runs the pass with annotations; what stopped it, or "". What it recorded until then is kept."""
    try:
        with record_stages(stages):
            model.losses([sample])
    except FloatingPointError as error:  # a model that has diverged is one that people want to look into
        return str(error)
    return ""


def read_sample(cfg: CfgNode, record: Record) -> Record:
    """The model's input as in testing, with ``instances`` where the record has annotations."""
    mapper: Any = MaskRCNNMapper(cfg, is_train=False)
    mapper.is_train = "annotations" in record  # annotations are kept, the augmentations remain those of testing
    return mapper(record)


def _as_rgb(image: torch.Tensor, image_format: str) -> np.ndarray:
    """(3, H, W) in the format of the config -> (H, W, 3) uint8 RGB."""
    return np.asarray(
        detection_utils.convert_image_to_rgb(image.permute(1, 2, 0).numpy(), image_format), dtype=np.uint8
    )
