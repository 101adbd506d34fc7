"""Region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1).

Shape shorthand: N images, A anchors per position, Ri = Hi*Wi*A anchors of level i, R of all levels, G ground-truth
boxes of an image, F sampled objects of all images.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import level_names, require
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm, channels_of
from d2_maskrcnn.modeling.box_coding import BoxCoder, at_least_float32
from d2_maskrcnn.modeling.losses import BOX_LOSSES, box_regression_loss, objectness_loss, put_scalars
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.rpn.proposals import ProposalSelection, ProposalSettings, select_proposals
from d2_maskrcnn.modeling.rpn.targets import AnchorLabels, match_anchors
from d2_maskrcnn.modeling.sampling import sample_batch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY, build_rpn_head
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import has_event_storage


@RPN_HEAD_REGISTRY.register()
class MaskRCNNRPNHead(nn.Module):
    """Predict one logit and four deltas per anchor by convolutions that all levels share.

    Args:
        num_anchors: anchors per position. box_dim: deltas per anchor.
        conv_dims: widths of the 3x3 convolutions before the predictors; -1 keeps the input's width.

    Raises:
        UserError: there is no convolution, or a width is neither positive nor -1.
    """

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: tuple[int, ...] = (-1,)
    ) -> None:
        super().__init__()
        if not conv_dims or any(dim == 0 or dim < -1 for dim in conv_dims):
            raise UserError(
                f"MODEL.RPN.CONV_DIMS is {list(conv_dims)}: expected one or more widths, or -1 for the input's width"
            )
        convs, channels = [], in_channels
        for dim in conv_dims:
            width = channels if dim == -1 else dim
            convs.append(ConvNorm(channels, width, 3, relu=True))
            channels = width
        # Detectron2's weight files name a single convolution `conv`, and several `conv.conv0`, `conv.conv1`, ...
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential()
        if len(convs) > 1:
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * box_dim, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.constant_(layer.get_parameter("bias"), 0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read ``cfg.MODEL.RPN``.

        Raises:
            UserError: the levels differ in their channels or in their number of anchors per position.
        """
        channels = {channels_of(shape) for shape in input_shape}
        anchor_generator: Any = build_anchor_generator(cfg, input_shape)
        num_anchors: set[int] = set(anchor_generator.num_anchors)
        if len(channels) != 1 or len(num_anchors) != 1:
            raise UserError(
                f"the levels of MODEL.RPN.IN_FEATURES have {sorted(channels)} channels and {sorted(num_anchors)} "
                "anchors per position: expected the same for every level, because they share the RPN head"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": tuple(cfg.MODEL.RPN.CONV_DIMS),
        }

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Map feature levels (N, C, Hi, Wi) to logits (N, A, Hi, Wi) and deltas (N, A*4, Hi, Wi) per level."""
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return logits, deltas


@dataclass
class RPNOutput:
    """Everything that one forward pass of the RPN computes.

    Attributes:
        anchors: per level (Ri, 4). logits: per level (N, Ri). deltas: per level (N, Ri, 4).
        labels: per image; empty without ground truth. losses: weighted; empty without ground truth.
        selection: the proposals.
    """

    anchors: list[torch.Tensor]
    logits: list[torch.Tensor]
    deltas: list[torch.Tensor]
    labels: list[AnchorLabels]
    losses: dict[str, torch.Tensor]
    selection: ProposalSelection


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNRPN(nn.Module):
    """Propose regions that may contain an object, and compute the RPN's losses if ground truth is given.

    Args:
        in_features: names of the feature levels, finest first.
        head: maps the levels to logits and deltas. anchor_generator: gives the anchors of the levels.
        batch_size_per_image: anchors per image that enter the losses. positive_fraction: maximum share of objects
            among them, in [0, 1].
        pre_nms_topk, post_nms_topk: of :class:`ProposalSettings`, with (first) and without ground truth (second).
        nms_thresh, min_box_size: see :class:`ProposalSettings`.
        anchor_boundary_thresh: anchors that extend beyond the image by more than this many pixels are not trained on;
            negative: all anchors are.
        loss_weight: factor of the losses, or those of ``loss_rpn_cls`` and ``loss_rpn_loc``; 1 if missing.
        box_reg_loss_type, smooth_l1_beta: see :func:`d2_maskrcnn.modeling.losses.box_regression_loss`.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box2box_transform: BoxCoder,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        anchor_boundary_thresh: float = -1.0,
        loss_weight: float | dict[str, float] = 1.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box_coder = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.train_settings, self.test_settings = (
            ProposalSettings(before, after, nms_thresh, min_box_size)
            for before, after in zip(pre_nms_topk, post_nms_topk, strict=True)
        )
        self.boundary_thresh = anchor_boundary_thresh
        names = ("loss_rpn_cls", "loss_rpn_loc")
        self.loss_weights = loss_weight if isinstance(loss_weight, dict) else dict.fromkeys(names, loss_weight)
        self.box_loss = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read ``cfg.MODEL.RPN``, ``PROPOSAL_GENERATOR`` and ``ANCHOR_GENERATOR``."""
        node = cfg.MODEL.RPN
        in_features = level_names(cfg, "MODEL.RPN.IN_FEATURES", input_shape)
        shapes = [input_shape[name] for name in in_features]
        return {
            "in_features": in_features,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True),
            "box2box_transform": BoxCoder(tuple(node.BBOX_REG_WEIGHTS)),
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "pre_nms_topk": (node.PRE_NMS_TOPK_TRAIN, node.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (node.POST_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TEST),
            "nms_thresh": node.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "anchor_boundary_thresh": node.BOUNDARY_THRESH,
            "loss_weight": {
                "loss_rpn_cls": node.LOSS_WEIGHT,
                "loss_rpn_loc": node.BBOX_REG_LOSS_WEIGHT * node.LOSS_WEIGHT,
            },
            "box_reg_loss_type": require(cfg, "MODEL.RPN.BBOX_REG_LOSS_TYPE", BOX_LOSSES),
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
        }

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Return the proposals and the losses.

        Args:
            images: only their sizes are used. features: name -> (N, C, Hi, Wi).
            gt_instances: per image Instances with ``gt_boxes``, XYXY in pixels of the network's input image. If given,
                the losses are computed and the training settings apply, whatever the module's mode.

        Returns:
            proposals: per image, see :class:`ProposalSelection`.
            losses: ``loss_rpn_cls`` and ``loss_rpn_loc``, weighted; empty without ground truth.

        Raises:
            FloatingPointError: a box or score is infinite or NaN and ground truth is given.
        """
        output = self.propose(images.image_sizes, features, gt_instances)
        return output.selection.proposals, output.losses

    def propose(
        self,
        image_sizes: list[tuple[int, int]],
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
        generator: torch.Generator | None = None,
    ) -> RPNOutput:
        """Compute what :meth:`forward` returns, with all intermediate tensors.

        Args:
            generator: of the random sampling of anchors; None for PyTorch's global one.
        """
        levels = [features[name] for name in self.in_features]
        anchors = [boxes.tensor for boxes in self.anchor_generator(levels)]
        logit_maps, delta_maps = self.rpn_head(levels)
        # Position-major like the anchors: (N, A, Hi, Wi) -> (N, Ri), and (N, A*4, Hi, Wi) -> (N, Ri, 4).
        logits = [at_least_float32(x.permute(0, 2, 3, 1).flatten(1)) for x in logit_maps]
        deltas = [at_least_float32(x.permute(0, 2, 3, 1).reshape(len(x), -1, 4)) for x in delta_maps]
        labels: list[AnchorLabels] = []
        losses: dict[str, torch.Tensor] = {}
        if gt_instances is not None:
            all_anchors = torch.cat(anchors)  # (R, 4)
            labels = self._label_anchors(all_anchors, gt_instances, generator)
            losses = self._losses(all_anchors, torch.cat(logits, 1), torch.cat(deltas, 1), labels)
        selection = select_proposals(
            anchors,
            [x.detach() for x in logits],
            [x.detach() for x in deltas],
            image_sizes,
            self.box_coder,
            self.test_settings if gt_instances is None else self.train_settings,
            training=gt_instances is not None,
        )
        return RPNOutput(anchors, logits, deltas, labels, losses, selection)

    def _label_anchors(
        self, anchors: torch.Tensor, gt_instances: list[Instances], generator: torch.Generator | None
    ) -> list[AnchorLabels]:
        labels = [match_anchors(anchors, item, self.anchor_matcher, self.boundary_thresh) for item in gt_instances]
        samples = sample_batch(
            [item.labels for item in labels], self.batch_size_per_image, self.positive_fraction, 0, generator
        )
        for item, item_samples in zip(labels, samples, strict=True):
            item.add_samples(item_samples)
        return labels

    def _losses(
        self, anchors: torch.Tensor, logits: torch.Tensor, deltas: torch.Tensor, labels: list[AnchorLabels]
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, divided by N * batch_size_per_image, of logits (N, R) and deltas (N, R, 4)."""
        objects = torch.cat([item.objects for item in labels])  # (F,)
        gt_boxes = torch.cat([item.object_boxes() for item in labels])  # (F, 4)
        # Of the anchors of all images, one image after the other.
        first = range(0, logits.numel(), len(anchors))
        used = torch.cat([item.used + start for start, item in zip(first, labels, strict=True)])
        all_objects = torch.cat([item.objects + start for start, item in zip(first, labels, strict=True)])  # (F,)
        loss_cls = objectness_loss(logits.flatten()[used], torch.cat([item.sampled for item in labels])[used])
        loss_loc = box_regression_loss(
            self.box_loss,
            self.box_coder,
            deltas.flatten(0, 1)[all_objects],
            anchors[objects],
            gt_boxes,
            self.smooth_l1_beta,
        )
        if self.training and has_event_storage():
            foreground, background = len(objects), len(used) - len(objects)
            put_scalars(
                {"rpn/num_pos_anchors": foreground / len(labels), "rpn/num_neg_anchors": background / len(labels)}
            )
        normalizer = self.batch_size_per_image * len(labels)
        losses = {"loss_rpn_cls": loss_cls / normalizer, "loss_rpn_loc": loss_loc / normalizer}
        return {name: loss * self.loss_weights.get(name, 1.0) for name, loss in losses.items()}
