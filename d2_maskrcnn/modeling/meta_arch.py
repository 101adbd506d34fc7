"""Mask R-CNN (He et al. 2017, arXiv:1703.06870): images in, losses or detections out."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.keys import plugin_node
from d2_maskrcnn.config.validation import refuse_unsupported
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.roi_heads.inference import postprocess
from d2_maskrcnn.ops import free_unused_buffers
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import BitMasks, Boxes, ImageList, Instances

Inputs = list[dict[str, Any]]
Losses = dict[str, torch.Tensor]
Results = list[dict[str, Instances]]


@META_ARCH_REGISTRY.register()
class MaskRCNN(nn.Module):
    """Detect objects and their masks by a backbone, a proposal generator and ROI heads.

    The inputs are a list with a dict per image:

    * ``image``: (C, H, W), uint8 or float, channels in the order of ``INPUT.FORMAT``.
    * ``height``, ``width`` (optional): size of the output image in pixels; the size of ``image`` by default.
    * ``instances`` (for the losses): Instances of image size (H, W) with ``gt_boxes`` (XYXY in pixels of ``image``),
      ``gt_classes`` and, with a mask head, ``gt_masks`` (PolygonMasks or BitMasks).

    Args:
        pixel_mean, pixel_std: one value per channel, in the order of ``input_format``.
        input_format: ``BGR``, ``RGB`` or ``RAW``; not used here, but by the code that reads images.
        vis_period: not used, but part of Detectron2's interface.
        channels_last: whether the convolutions' weights and activations are stored in NHWC order.
        winograd, winograd_in_training: whether 3x3 convolutions use :mod:`d2_maskrcnn.ops.winograd` where it is
            faster, in evaluation mode and in training mode.

    Raises:
        UserError: ``pixel_mean`` and ``pixel_std`` differ in length.
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
        vis_period: int = 0,
        channels_last: bool = False,
        winograd: bool = True,
        winograd_in_training: bool = True,
    ) -> None:
        super().__init__()
        if len(pixel_mean) != len(pixel_std):
            raise UserError(
                f"MODEL.PIXEL_MEAN has {len(pixel_mean)} values and MODEL.PIXEL_STD {len(pixel_std)}: expected one "
                "value per channel in both"
            )
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads: Any = roi_heads
        self.input_format = input_format
        self.vis_period = vis_period
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.input_dtype: torch.dtype | None = None  # of the images that the backbone gets; None: of ``pixel_mean``
        self.channels_last = channels_last  # not a torch.memory_format, which cannot be pickled with the model
        self.to(memory_format=self.memory_format)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.winograd, module.winograd_in_training = winograd, winograd_in_training

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Build the components that ``cfg`` names.

        Raises:
            UserError: ``cfg`` enables something that this model does not implement.
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
            "channels_last": plugin_node(cfg).CHANNELS_LAST,
            "winograd": plugin_node(cfg).INFERENCE.WINOGRAD,
            "winograd_in_training": plugin_node(cfg).SOLVER.WINOGRAD,
        }

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the images and of the convolutions' weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def device(self) -> torch.device:
        """The model's device, to which inputs are moved."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: Inputs) -> Losses | Results | list[Instances]:
        """Return :meth:`losses` in training mode and :meth:`inference` in evaluation mode."""
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: Inputs) -> Losses:
        """Compute the losses, in evaluation mode as well (a validation loss).

        In evaluation mode the state of the process does not change: norms use their running statistics, random
        sampling depends on the input only and leaves PyTorch's global generators as they were, and nothing is written
        to the event storage. Gradients are tracked in both modes unless the caller uses ``torch.no_grad()``.

        Returns:
            ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``, ``loss_box_reg``, ``loss_mask``: weighted scalars.

        Raises:
            UserError: an input has no annotations.
            FloatingPointError: the RPN predicts infinite or NaN boxes.
        """
        with nullcontext() if self.training else _fixed_random_state(self.device):
            images = self.preprocess_image(batched_inputs)
            targets = self.ground_truth(batched_inputs)
            features = self.backbone(images.tensor)
            proposals, rpn_losses = self.proposal_generator(images, features, targets)
            _, roi_losses = self.roi_heads(images, features, proposals, targets)
        return {**roi_losses, **rpn_losses}

    @torch.no_grad()
    def inference(
        self, batched_inputs: Inputs, detected_instances: list[Instances] | None = None, do_postprocess: bool = True
    ) -> Results | list[Instances]:
        """Detect the objects of each image.

        Args:
            detected_instances: per image ``pred_boxes`` (XYXY in pixels of ``image``) and ``pred_classes``; if given,
                only masks are added to them.
            do_postprocess: whether the results are scaled to the output image.

        Returns:
            per image ``{"instances": Instances}`` with ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks``
            (n, height, width) bool. Without post-processing the plain Instances in the frame of ``image``, whose
            ``pred_masks`` (n, 1, 28, 28) are probabilities inside each box.
        """
        images = self.preprocess_image(batched_inputs)
        free_unused_buffers()  # the backbone, which needs the most memory, cannot use them
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            detections, _ = self.roi_heads(images, features, proposals, None)
        else:
            given = [instances.to(self.device) for instances in detected_instances]
            detections = self.roi_heads.forward_with_given_boxes(features, given)
        return self.postprocess(detections, batched_inputs) if do_postprocess else detections

    def preprocess_image(self, batched_inputs: Inputs) -> ImageList:
        """Normalize the images and pad them with zeros, at the right and bottom, to a size that the backbone accepts.

        Raises:
            UserError: there is no image, or one is not (channels, H, W).
        """
        images = [_image(item, len(self.pixel_mean)).to(self.device, non_blocking=True) for item in batched_inputs]
        if not images:
            raise UserError("the model was given an empty batch: expected one dict or more")
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        step = max(self.backbone.size_divisibility, 1)
        height, width = (-(-max(side) // step) * step for side in zip(*sizes, strict=True))
        batch = torch.zeros(
            (len(images), len(self.pixel_mean), height, width),
            dtype=self.input_dtype or self.pixel_mean.dtype,
            device=self.device,
        ).to(memory_format=self.memory_format)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = (image - self.pixel_mean) / self.pixel_std
        return ImageList(batch, sizes)

    def ground_truth(self, batched_inputs: Inputs) -> list[Instances]:
        """Return the ``instances`` of the inputs, on the model's device.

        Raises:
            UserError: an input has none.
        """
        missing = [
            item.get("file_name", f"number {i}") for i, item in enumerate(batched_inputs) if "instances" not in item
        ]
        if missing:
            raise UserError(
                f"the input image {missing[0]} has no 'instances': losses need annotations (use a training mapper)"
            )
        return [_moved(item["instances"], self.device) for item in batched_inputs]

    @staticmethod
    def postprocess(detections: list[Instances], batched_inputs: Inputs) -> Results:
        """Scale each image's detections to its ``height`` x ``width``; see :func:`postprocess`."""
        results = []
        for instances, item in zip(detections, batched_inputs, strict=True):
            height, width = item.get("height", instances.image_size[0]), item.get("width", instances.image_size[1])
            results.append({"instances": postprocess(instances, height, width)})
        return results


@contextmanager
def _fixed_random_state(device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators with 0 and restore them afterwards.

    Detectron2's interfaces of proposal generators and ROI heads have no argument for a generator.
    """
    cuda = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(0)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(0)
        yield


def _moved(instances: Instances, device: torch.device) -> Instances:
    """Move instances to a device without waiting for it: ``Instances.to`` waits, once per field."""
    moved = Instances(instances.image_size)
    for name, value in instances.get_fields().items():
        if isinstance(value, Boxes | BitMasks):  # Detectron2's Boxes.to has no argument non_blocking
            moved.set(name, type(value)(value.tensor.to(device, non_blocking=True)))
        elif isinstance(value, torch.Tensor):
            moved.set(name, value.to(device, non_blocking=True))
        else:
            moved.set(name, value.to(device) if hasattr(value, "to") else value)
    return moved


def _image(item: dict[str, Any], channels: int) -> torch.Tensor:
    image: torch.Tensor = item["image"]
    if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
        raise UserError(
            f"the input image {item.get('file_name', '')} has the shape {tuple(image.shape)}: expected "
            f"({channels}, height, width)"
        )
    return image
