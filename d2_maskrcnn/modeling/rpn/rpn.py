"""Region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1).

Shape shorthand: N images, L levels, A anchors at a position, Ri = Hi*Wi*A anchors of a level, R of all levels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.config.validation import level_names, require
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.box_coding import BoxCoder
from d2_maskrcnn.modeling.intermediates import active_stages
from d2_maskrcnn.modeling.losses import BOX_LOSSES, box_regression_loss, objectness_loss
from d2_maskrcnn.modeling.matcher import Matcher
from d2_maskrcnn.modeling.precision import at_least_float32
from d2_maskrcnn.modeling.rpn.proposals import ProposalSettings, select_proposals
from d2_maskrcnn.modeling.sampling import sample_labels
from d2_maskrcnn.modeling.shapes import channels_of
from d2_maskrcnn.modeling.training_events import put_events
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY, build_rpn_head
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou


@RPN_HEAD_REGISTRY.register()
class MaskRCNNRPNHead(nn.Module):
    """3x3 convolutions, then for each anchor one logit and four deltas; the same weights on all levels."""

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, box_dim: int = 4, conv_dims: tuple[int, ...] = (-1,)
    ) -> None:
        """Args: conv_dims: widths of the 3x3 convolutions; -1 keeps the width of what comes in.

        Raises:
            UserError: no convolution, or a width that is none.
        """
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
        # One convolution is `conv`, several are `conv.conv0`, `conv.conv1`, ...: the names in Detectron2's weight
        # files.
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
        """All levels share the weights, so they must have the same channels and the same number of anchors."""
        channels = {channels_of(shape) for shape in input_shape}
        anchor_generator: Any = build_anchor_generator(cfg, input_shape)
        num_anchors: set[int] = set(anchor_generator.num_anchors)
        if len(channels) != 1 or len(num_anchors) != 1:
            raise UserError(
                f"the levels of MODEL.RPN.IN_FEATURES have {sorted(channels)} channels and {sorted(num_anchors)} "
                "anchors at a position: expected the same on each, since they share the RPN's head"
            )
        return {
            "in_channels": channels.pop(),
            "num_anchors": num_anchors.pop(),
            "box_dim": anchor_generator.box_dim,
            "conv_dims": tuple(cfg.MODEL.RPN.CONV_DIMS),
        }

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Args: features: for each level (N, C, Hi, Wi).

        Returns:
            for each level logits (N, A, Hi, Wi), and for each level deltas (N, A*4, Hi, Wi).
        """
        logits, deltas = [], []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden))
            deltas.append(self.anchor_deltas(hidden))
        return logits, deltas


@dataclass
class _AnchorTargets:
    """What training asks of one image's anchors."""

    labels: torch.Tensor  # (R,) int8, sampled: 1 object, 0 background, -1 not used
    matches: torch.Tensor  # (R,) int64, index into gt_boxes; meaningless where the label isn't 1
    gt_boxes: torch.Tensor  # (G, 4)

    def object_boxes(self) -> torch.Tensor:
        """The annotated boxes (F, 4) of the anchors labelled 1, in the anchors' order."""
        return self.gt_boxes[self.matches[self.labels == 1]]


@PROPOSAL_GENERATOR_REGISTRY.register()
class MaskRCNNRPN(nn.Module):
    """Proposes regions that may hold an object: head, anchors, selection and, given annotations, two losses."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        anchor_matcher: Matcher,
        box_coder: BoxCoder,
        batch_size_per_image: int,
        positive_fraction: float,
        train_settings: ProposalSettings,
        test_settings: ProposalSettings,
        boundary_thresh: int = -1,
        loss_weights: dict[str, float] | None = None,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """Takes built parts.

        Args:
            batch_size_per_image: anchors of an image that enter the loss. positive_fraction: share of objects among
                them.
            boundary_thresh: anchors that leave the image by more than this many pixels are not trained on;
                negative: all are.
            loss_weights: factor for ``loss_rpn_cls`` and ``loss_rpn_loc``; 1 where missing.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.anchor_matcher = anchor_matcher
        self.box_coder = box_coder
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.train_settings = train_settings
        self.test_settings = test_settings
        self.boundary_thresh = boundary_thresh
        self.loss_weights = loss_weights or {}
        self.box_loss = box_loss
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Reads ``cfg.MODEL.RPN``, ``PROPOSAL_GENERATOR`` and ``ANCHOR_GENERATOR``."""
        node = cfg.MODEL.RPN
        in_features = level_names(cfg, "MODEL.RPN.IN_FEATURES", input_shape)
        shapes = [input_shape[name] for name in in_features]
        min_size = cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        return {
            "in_features": in_features,
            "head": build_rpn_head(cfg, shapes),
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "anchor_matcher": Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, allow_low_quality_matches=True),
            "box_coder": BoxCoder(tuple(node.BBOX_REG_WEIGHTS)),
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "train_settings": ProposalSettings(
                node.PRE_NMS_TOPK_TRAIN, node.POST_NMS_TOPK_TRAIN, node.NMS_THRESH, min_size
            ),
            "test_settings": ProposalSettings(
                node.PRE_NMS_TOPK_TEST, node.POST_NMS_TOPK_TEST, node.NMS_THRESH, min_size
            ),
            "boundary_thresh": node.BOUNDARY_THRESH,
            "loss_weights": {
                "loss_rpn_cls": node.LOSS_WEIGHT,
                "loss_rpn_loc": node.BBOX_REG_LOSS_WEIGHT * node.LOSS_WEIGHT,
            },
            "box_loss": require(cfg, "MODEL.RPN.BBOX_REG_LOSS_TYPE", BOX_LOSSES),
            "smooth_l1_beta": node.SMOOTH_L1_BETA,
        }

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Proposes, and compares with the annotations where there are any.

        Args:
            images: only their sizes are used. features: name -> (N, C, Hi, Wi).
            gt_instances: for each image Instances with ``gt_boxes`` in the network's frame; None when only
                proposals are wanted. Given, the settings for training apply, whatever the module's mode.

        Returns:
            proposals: see :func:`select_proposals`.
            losses: ``loss_rpn_cls`` and ``loss_rpn_loc``, weighted; empty without annotations.
        """
        levels = [features[name] for name in self.in_features]
        anchors = [boxes.tensor for boxes in self.anchor_generator(levels)]
        logit_maps, delta_maps = self.rpn_head(levels)
        # Position-major like the anchors: (N, A, Hi, Wi) -> (N, Ri), and (N, A*4, Hi, Wi) -> (N, Ri, 4).
        logits = [at_least_float32(level.permute(0, 2, 3, 1).flatten(1)) for level in logit_maps]
        deltas = [at_least_float32(level.permute(0, 2, 3, 1).reshape(len(level), -1, 4)) for level in delta_maps]
        if (stages := active_stages()) is not None:
            stages.record(anchors=anchors, rpn_logits=logits, rpn_deltas=deltas)
        losses = {}
        if gt_instances is not None:
            targets = self._label_anchors(torch.cat(anchors), gt_instances)
            losses = self._losses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), targets)
        settings = self.test_settings if gt_instances is None else self.train_settings
        proposals = select_proposals(
            anchors,
            [level.detach() for level in logits],
            [level.detach() for level in deltas],
            images.image_sizes,
            self.box_coder,
            settings,
            training=gt_instances is not None,
        )
        return proposals, losses

    @torch.no_grad()
    def _label_anchors(self, anchors: torch.Tensor, gt_instances: list[Instances]) -> list[_AnchorTargets]:
        """Matches, then samples: for each image labels and matches of all R anchors."""
        stages = active_stages()
        if stages is not None:
            stages.record(anchor_labels=[], sampled_anchor_labels=[], anchor_matches=[])
        targets = []
        for instances in gt_instances:
            matches, labels = self.anchor_matcher(pairwise_iou(instances.gt_boxes, Boxes(anchors)))
            if self.boundary_thresh >= 0:
                inside = Boxes(anchors).inside_box(instances.image_size, self.boundary_thresh)
                labels[~inside] = -1
            positive, negative = sample_labels(labels, self.batch_size_per_image, self.positive_fraction, background=0)
            sampled = torch.full_like(labels, -1)
            sampled[positive] = 1
            sampled[negative] = 0
            targets.append(_AnchorTargets(sampled, matches, instances.gt_boxes.tensor))
            if stages is not None:
                stages.append(anchor_labels=labels, sampled_anchor_labels=sampled, anchor_matches=matches)
        return targets

    def _losses(
        self, anchors: torch.Tensor, logits: torch.Tensor, deltas: torch.Tensor, targets: list[_AnchorTargets]
    ) -> dict[str, torch.Tensor]:
        """Args: anchors (R, 4), logits (N, R), deltas (N, R, 4). Both losses are divided by the anchors asked for."""
        labels = torch.stack([target.labels for target in targets])  # (N, R)
        image, anchor = (labels == 1).nonzero(as_tuple=True)  # each (F,)
        target_boxes = torch.cat([target.object_boxes() for target in targets])  # (F, 4)
        used = labels >= 0
        number = self.batch_size_per_image * len(targets)
        losses = {
            "loss_rpn_cls": objectness_loss(logits[used], labels[used]) / number,
            "loss_rpn_loc": box_regression_loss(
                self.box_loss,
                self.box_coder,
                deltas[image, anchor],
                anchors[anchor],
                target_boxes,
                self.smooth_l1_beta,
            )
            / number,
        }
        put_events(
            {
                "rpn/num_pos_anchors": image.numel() / len(targets),
                "rpn/num_neg_anchors": (labels == 0).sum() / len(targets),
            }
        )
        return {name: loss * self.loss_weights.get(name, 1.0) for name, loss in losses.items()}
