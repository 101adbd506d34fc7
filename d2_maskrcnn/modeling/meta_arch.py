"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): images in, losses or detections out."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import refuse_unsupported
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.intermediates import Stages, active_stages, record_stages
from d2_maskrcnn.modeling.postprocessing import postprocess
from d2_maskrcnn.modeling.training_events import muted_events
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import ImageList, Instances

Inputs = list[dict[str, Any]]
Losses = dict[str, torch.Tensor]
Detections = list[Instances] | list[dict[str, Instances]]


@META_ARCH_REGISTRY.register()
class MaskRCNN(nn.Module):
    """A backbone that gives feature maps, a proposal generator, and region heads.

    Each element of the input list describes one image:

    * ``image``: (3, H, W), uint8 or float in [0, 255], channels in the order of ``INPUT.FORMAT``.
    * ``height``, ``width`` (optional): size of the output image; the input's own size if missing.
    * ``instances`` (for losses): Instances of image size (H, W) with ``gt_boxes``, ``gt_classes`` and, with masks,
      ``gt_masks`` (PolygonMasks or BitMasks).
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        channels_last: bool = False,
    ) -> None:
        """Takes built parts.

        Args:
            pixel_mean, pixel_std: one value for each channel, in the order of ``input_format``.
            input_format: ``BGR`` or ``RGB``; for whoever reads the images.
            channels_last: whether weights and activations of convolutions lie in NHWC order.

        Raises:
            UserError: the two lists differ in length.
        """
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise UserError(
                f"MODEL.PIXEL_MEAN has {len(pixel_mean)} values and MODEL.PIXEL_STD {len(pixel_std)}: expected one for "
                "each channel"
            )
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads: Any = roi_heads
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Builds the parts that ``cfg`` names.

        Raises:
            UserError: ``cfg`` asks for something that this model has not got.
        """
        refuse_unsupported(cfg)
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "input_format": cfg.INPUT.FORMAT,
            "channels_last": cfg.D2_MASKRCNN.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is; inputs are brought there."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs, stages: Stages | None = None) -> Losses | Detections:
        """In training mode :meth:`losses`, in evaluation mode :meth:`inference`.

        Args:
            stages: records what every stage computes; see :mod:`d2_maskrcnn.modeling.intermediates`.
        """
        with record_stages(stages) if stages is not None else nullcontext():
            return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: Inputs) -> Losses:
        """The five losses, also in evaluation mode (a validation loss).

        In evaluation mode no state is touched: norms use their running statistics, random sampling leaves the
        generators as they were (and draws the same for the same input), and nothing is written to the event storage.
        Gradients are as the caller
        has them: use ``torch.no_grad()`` for a validation loss.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``, ``loss_mask``: scalars, already
            weighted.

        Raises:
            UserError: an input has no annotations. FloatingPointError: the RPN gives infinite boxes.
        """
        with nullcontext() if self.training else self._untouched_state():
            images = self.preprocess_image(batched_inputs)
            targets = self._targets(batched_inputs)
            features = self.backbone(images.tensor)
            proposals, losses = self.proposal_generator(images, features, targets)
            _, roi_losses = self.roi_heads(images, features, proposals, targets)
            losses = {**roi_losses, **losses}
        if (recorder := active_stages()) is not None:
            recorder.record(losses=losses)
        return losses

    @torch.no_grad()
    def inference(
        self, batched_inputs: Inputs, detected_instances: list[Instances] | None = None, do_postprocess: bool = True
    ) -> Detections:
        """Detections of each image.

        Args:
            detected_instances: for each image ``pred_boxes`` (network's frame) and ``pred_classes``; then only
                masks are added.
            do_postprocess: whether to bring the results to the output's size.

        Returns:
            for each image ``{"instances": Instances}`` with ``pred_boxes``, ``scores``, ``pred_classes`` and
            ``pred_masks`` (n, height, width) bool. Without post-processing the plain Instances in the network's
            frame, ``pred_masks`` (n, 1, 28, 28) being probabilities inside each box.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [instances.to(self.device) for instances in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, given)
        return self._postprocess(results, batched_inputs) if do_postprocess else results

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        """Normalised images, padded at the right and bottom with zeros to one size that the backbone can divide.

        Raises:
            UserError: no image, or one that is not (channels, H, W).
        """
        images = [_image(item, len(self.pixel_mean)).to(self.device, non_blocking=True) for item in batched_inputs]
        if not images:
            raise UserError("the model was given an empty batch: expected one dict or more")
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        step = max(self.backbone.size_divisibility, 1)
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        batch = torch.zeros(
            (len(images), len(self.pixel_mean), height, width), dtype=self.pixel_mean.dtype, device=self.device
        ).to(memory_format=self.memory_format)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        if (stages := active_stages()) is not None:
            stages.record(images=batch, image_sizes=sizes)
        return ImageList(batch, sizes)

    def _targets(self, batched_inputs: Inputs) -> list[Instances]:
        missing = [
            item.get("file_name", f"number {i}") for i, item in enumerate(batched_inputs) if "instances" not in item
        ]
        if missing:
            raise UserError(
                f"the input image {missing[0]} has no 'instances': losses need annotations (use a training mapper)"
            )
        return [item["instances"].to(self.device) for item in batched_inputs]

    def _postprocess(self, results: list[Instances], batched_inputs: Inputs) -> list[dict[str, Instances]]:
        outputs = []
        for instances, item in zip(results, batched_inputs, strict=True):
            height, width = item.get("height", instances.image_size[0]), item.get("width", instances.image_size[1])
            outputs.append({"instances": postprocess(instances, height, width)})
        if (stages := active_stages()) is not None:
            stages.record(results=[output["instances"] for output in outputs])
        return outputs

    @contextmanager
    def _untouched_state(self) -> Iterator[None]:
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), muted_events():
            torch.default_generator.manual_seed(0)
            if devices:
                torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(0)
            yield


def _image(item: dict[str, Any], channels: int) -> torch.Tensor:
    image: torch.Tensor = item["image"]
    if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
        raise UserError(
            f"the input image {item.get('file_name', '')} has the shape {tuple(image.shape)}: expected "
            f"({channels}, height, width)"
        )
    return image
