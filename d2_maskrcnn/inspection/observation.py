"""Run the model on one image and keep everything that it computed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.data import MaskRCNNMapper
from d2_maskrcnn.data.coco.records import Record
from d2_maskrcnn.data.ground_truth import GroundTruth, ground_truth_of
from d2_maskrcnn.data.image_reading import read_display
from d2_maskrcnn.data.raw_images import RAW, to_rgb
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.modeling.intermediates import Intermediates, record_outputs, trace_inference, trace_losses
from d2_maskrcnn.visualization.scene import Layer, Scene
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.evaluation import inference_context
from detectron2.structures import Instances

T = TypeVar("T")


@dataclass
class Observation:
    """Everything that the model computed for one image.

    Attributes:
        path: of the image file.
        original: (H, W, 3) uint8 RGB, the image file.
        image: (h, w, 3) uint8 RGB, the network's input image before normalization.
        output_size: (H, W) of the image file.
        intermediates: of inference. Boxes are in pixels of ``image``, those of ``results`` in pixels of the image file.
        training: of a second pass with the ground truth, which computes losses but changes no weight; None without
            ground truth.
        ground_truth: in pixels of the image file, or None.
        gt_instances: ground truth without crowd regions in pixels of ``image``, as training uses it, or None.
        layers: module name -> its outputs, one per call.
        level_names: feature levels of the RPN; the region heads use ``roi_level_names``.
        strides: of the RPN's levels, in pixels of ``image``.
        box_weights: factors of the box deltas (dx, dy, dw, dh), ``MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS``.
        class_names: may be empty.
        seconds: duration of inference.
        problem: why the losses could not be computed, or "".
    """

    path: str
    original: np.ndarray
    image: np.ndarray
    output_size: tuple[int, int]
    intermediates: Intermediates
    training: Intermediates | None
    ground_truth: GroundTruth | None
    gt_instances: Instances | None
    layers: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    level_names: Sequence[str] = ()
    roi_level_names: Sequence[str] = ()
    strides: Sequence[int] = ()
    box_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    class_names: Sequence[str] = ()
    seconds: float = 0.0
    problem: str = ""
    _cache: dict[str, Any] = field(init=False, default_factory=dict, repr=False)  # dataclasses.replace starts afresh

    @property
    def name(self) -> str:
        """Base name of the image file."""
        return Path(self.path).name

    def network_scene(self, name: str, title: str, layers: list[Layer]) -> Scene:
        """Make a scene whose marks are in pixels of ``image``."""
        height, width = self.image.shape[:2]
        return Scene(name, title, self.original, (height, width), layers, self.class_names)

    def class_name(self, index: int) -> str:
        """Return the name of a class, or ``class 7`` if there are no names."""
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Return the result of ``compute``, which is called at most once per ``name``."""
        if name not in self._cache:
            self._cache[name] = compute()
        return self._cache[name]

    def gt_boxes(self) -> torch.Tensor:
        """Return the ground truth boxes in pixels of ``image``, (G, 4) XYXY; G is 0 without ground truth."""
        if self.gt_instances is None:
            return torch.zeros((0, 4))
        return self.gt_instances.gt_boxes.tensor.float().cpu()


def observe(
    cfg: CfgNode, model: nn.Module, record: Record, class_names: Sequence[str] = (), layers: Sequence[str] | None = None
) -> Observation:
    """Run inference on one image and, if it is annotated, a second pass for losses and training labels.

    Args:
        cfg: config that the model was built from.
        model: its mode and its weights are not changed.
        record: dataset dict of the image in Detectron2's standard format, with or without ``annotations``.
        layers: names of modules whose outputs are kept; None for :func:`default_layers`.

    Raises:
        UserError: the image cannot be read, the model has no such layer, or its RPN or ROI heads are not this plugin's.
    """
    sample, any_model = read_sample(cfg, record), model  # type: tuple[Record, Any]
    with inference_context(model):
        with record_outputs(_modules(model, layers)) as outputs:
            start = time.perf_counter()
            intermediates = trace_inference(any_model, [sample])
            seconds = time.perf_counter() - start
        training, problem = _trace_training(any_model, sample)
    return Observation(
        path=str(record["file_name"]),
        original=read_display(str(record["file_name"]), cfg.INPUT.FORMAT),
        image=as_rgb(sample["image"], cfg.INPUT.FORMAT),
        output_size=(record["height"], record["width"]),
        intermediates=intermediates,
        training=training,
        ground_truth=ground_truth_of(record),
        gt_instances=sample.get("instances"),
        layers=dict(outputs),
        level_names=tuple(any_model.proposal_generator.in_features),
        roi_level_names=tuple(any_model.roi_heads.in_features),
        strides=tuple(any_model.proposal_generator.anchor_generator.strides),
        box_weights=tuple(cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
        class_names=tuple(class_names),
        seconds=seconds,
        problem=problem,
    )


def _trace_training(model: Any, sample: Record) -> tuple[Intermediates | None, str]:
    """Run the pass with ground truth, if there is any; return its tensors, and why it failed, or ""."""
    try:
        return (trace_losses(model, [sample]) if "instances" in sample else None), ""
    except FloatingPointError as error:  # a diverged model is worth inspecting
        return None, str(error)


def default_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers inside the RPN head, the box head and the mask head.

    The other layers worth showing are part of :class:`~d2_maskrcnn.modeling.intermediates.Intermediates`.
    """
    names = []
    for name, module in model.named_modules():
        inside_head = name.startswith(("proposal_generator.rpn_head.", "roi_heads.mask_head."))
        convolution = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and not name.endswith("predictor")
        inside_box_head = name.startswith("roi_heads.box_head.") and isinstance(module, (nn.Linear, nn.Conv2d))
        if (inside_head and convolution) or inside_box_head or name == "roi_heads.box_head":
            names.append(name)
    return names


def _modules(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    """Look up modules by name; None for :func:`default_layers`."""
    modules = {name: module for name, module in model.named_modules() if name}
    chosen = list(default_layers(model) if names is None else names)
    for name in chosen:
        if name not in modules:
            # Prefer names that end alike: `res4.2.conv1` is closer to another conv1 than to `res4.2.conv2`.
            same_end = [each for each in modules if each.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
            raise UserError(f"the model has no layer {name!r}.{did_you_mean(name, same_end or modules, cutoff=0.0)}")
    return {name: modules[name] for name in chosen}


def read_sample(cfg: CfgNode, record: Record) -> Record:
    """Map a record to the model's input as in testing, with ``instances`` if it has annotations."""
    mapper: Any = MaskRCNNMapper(cfg, is_train=False)
    mapper.is_train = "annotations" in record  # keeps the annotations; the augmentations remain those of testing
    return mapper(record)


def as_rgb(image: torch.Tensor, image_format: str) -> np.ndarray:
    """Convert (C, H, W) in the config's ``INPUT.FORMAT`` to (H, W, 3) uint8 RGB; see :func:`to_rgb` for ``RAW``."""
    pixels = image.permute(1, 2, 0).numpy()
    if image_format == RAW:
        return to_rgb(pixels)
    return np.asarray(detection_utils.convert_image_to_rgb(pixels, image_format), dtype=np.uint8)
