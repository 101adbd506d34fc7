"""Express the detector as tensor operations without loops over images, which exporters can trace.

It computes what :meth:`MaskRCNN.inference` computes, with the same weights and in the same order, but all images of a
batch at once: where their numbers of proposals or detections differ, scores of ``DROPPED`` mark the rest.

Shape shorthand: N images, L levels, k top anchors of a level, G groups that are suppressed separately, R boxes of a
group, P proposals of an image at most, M proposals of all images, K classes, D detections of all images, S mask side.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from d2_maskrcnn.data.raw_images import RAW
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.exporters.operations import DROPPED, KEPT, Suppress, cell_centers, clip, paste, suppress
from d2_maskrcnn.modeling.backbone.conv_norm import ConvNorm
from d2_maskrcnn.modeling.backbone.fpn import FPN
from d2_maskrcnn.modeling.meta_arch import MaskRCNN
from d2_maskrcnn.modeling.roi_heads.box_head import MaskRCNNBoxHead
from d2_maskrcnn.modeling.roi_heads.mask_head import MaskRCNNMaskHead
from d2_maskrcnn.modeling.roi_heads.roi_heads import MaskRCNNROIHeads
from d2_maskrcnn.modeling.rpn.anchor_generator import MaskRCNNAnchorGenerator
from d2_maskrcnn.modeling.rpn.rpn import MaskRCNNRPN
from d2_maskrcnn.ops import ROIPooler


class DetectorGraph(nn.Module):
    """Detect objects in a batch of images.

    Args:
        model: a model of this plugin; it is copied.
        suppress: the non-maximum suppression to use; see :func:`suppress`.
        dtype: of convolutions and matrix products but the box predictor's; coordinates and scores are float32.
        paste: whether masks are also pasted at the size of the images.

    Raises:
        UserError: a component of the model is not this plugin's, so that its structure is not known.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        model: nn.Module,
        suppress: Suppress = suppress,
        dtype: torch.dtype = torch.float32,
        paste: bool = False,
    ) -> None:
        super().__init__()
        network = copy.deepcopy(check_components(model)).cpu().eval().requires_grad_(False)
        for module in network.modules():
            if isinstance(module, ConvNorm):
                module.fold_norm()
                module.winograd = False  # runtimes have their own convolutions
        self.raw = network.input_format == RAW
        self.register_buffer("mean", network.pixel_mean.clone())
        self.register_buffer("std", network.pixel_std.clone())
        network = network.to(memory_format=torch.contiguous_format).float()
        generator: Any = network.proposal_generator
        for part in (network.backbone, generator.rpn_head, network.roi_heads.box_head, network.roi_heads.mask_head):
            if part is not None:
                part.to(dtype)  # the box predictor computes in float32
        self.backbone: Any = network.backbone
        self.rpn = generator
        self.heads = network.roi_heads
        for index, cells in enumerate(generator.anchor_generator._cells):
            self.register_buffer(f"cells{index}", cells.clone())
        self.suppress, self.dtype, self.paste = suppress, dtype, paste

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs of :meth:`forward`."""
        masks = ["masks"] if self.heads.mask_head is not None else []
        return ["boxes", "scores", "classes", "image_indices", *masks, *(["pasted_masks"] if self.paste else [])]

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect objects.

        Args:
            images: (N, C, H, W) uint8 or float, channels in the order of ``INPUT.FORMAT``; smaller images are in the
                top left corner.
            sizes: (N, 2) int64, height and width of each image.

        Returns:
            boxes (D, 4) float32, XYXY in pixels of ``images``; scores (D,) float32 in [0, 1]; classes (D,) int64; image
            indices (D,) int64; with a mask head masks (D, S, S) float32, probabilities inside the boxes, and with
            ``paste`` masks (D, H, W) bool. Image after image, best detection first.
        """
        features = self._features(self._normalize(images, sizes))
        limits = sizes.float()[:, [1, 0, 1, 0]]  # (N, 4)
        boxes, image, slot = self._propose(features, limits)
        detections = self._detect(features, limits, boxes, image, slot)
        if self.heads.mask_head is None:
            return detections
        boxes, _, classes, image = detections
        masks = self._masks(features, boxes, classes, image)
        pasted = (paste(masks, boxes, images.shape[2], images.shape[3]),) if self.paste else ()
        return (*detections, masks, *pasted)

    def _normalize(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """Return (N, C, H', W') with zeros outside each image, H' and W' such that the backbone accepts them."""
        height, width = images.shape[2:]
        inside_y = torch.arange(height, device=images.device) < sizes[:, :1]  # (N, H)
        inside_x = torch.arange(width, device=images.device) < sizes[:, 1:]  # (N, W)
        inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]
        normalized = ((images.float() - self.mean) / self.std) * inside.float()
        step = max(self.backbone.size_divisibility, 1)
        padding = (0, -width % step, 0, -height % step)
        return F.pad(normalized, padding).to(self.dtype)

    def _features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the levels of the feature pyramid; see :class:`FPN`."""
        fpn = self.backbone
        bottom_up, outputs = fpn.bottom_up(x), {}
        top_down = None
        for level, name in zip(reversed(fpn.levels), reversed(fpn.in_features), strict=True):
            lateral = fpn.get_submodule(f"fpn_lateral{level}")(bottom_up[name])
            if top_down is not None:
                lateral = lateral + F.interpolate(top_down, size=lateral.shape[2:], mode="nearest")
                lateral = lateral / 2 if fpn.fuse_type == "avg" else lateral
            top_down = lateral
            outputs[f"p{level}"] = fpn.get_submodule(f"fpn_output{level}")(top_down)
        top = fpn.levels[-1]
        outputs[f"p{top + 1}"] = outputs[f"p{top}"][:, :, ::2, ::2]
        return outputs

    def _propose(
        self, features: dict[str, torch.Tensor], limits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the proposals (M, 4), and the image (M,) and rank in it (M,) of each."""
        settings = self.rpn.test_settings
        maps = self.rpn.rpn_head([features[name] for name in self.rpn.in_features])
        top = [self._top_anchors(level, *level_maps) for level, level_maps in enumerate(zip(*maps, strict=True))]
        boxes = clip(torch.stack([each for each, _ in top], dim=1), limits[:, None, None])  # (N, L, k, 4)
        scores = torch.stack([each for _, each in top], dim=1)  # (N, L, k)
        sides = boxes[..., 2:] - boxes[..., :2]
        usable = boxes.isfinite().all(-1) & scores.isfinite() & (sides > settings.min_size).all(-1)
        scores = torch.where(usable, scores, DROPPED)
        scores = self.suppress(
            boxes.flatten(0, 1), scores.flatten(0, 1), settings.nms_thresh, settings.post_nms_topk
        ).unflatten(0, (-1, len(top)))
        best, index = scores.flatten(1).topk(min(settings.post_nms_topk, len(top) * settings.pre_nms_topk))  # (N, P)
        image, slot = (best > KEPT).nonzero(as_tuple=True)
        return boxes.flatten(1, 2)[image, index[image, slot]], image, slot

    def _top_anchors(self, level: int, logits: torch.Tensor, deltas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Refine the anchors of one level with the highest logits: boxes (N, k, 4), logits (N, k).

        Levels of fewer than k anchors are filled up with logits of ``DROPPED``.

        Args:
            logits: (N, A, Hi, Wi). deltas: (N, A*4, Hi, Wi).
        """
        generator, count = self.rpn.anchor_generator, self.rpn.test_settings.pre_nms_topk
        cells = self.get_buffer(f"cells{level}")
        flat = logits.float().permute(0, 2, 3, 1).flatten(1)  # (N, Ri)
        deltas = deltas.float().permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))  # (N, Ri, 4)
        best, index = F.pad(flat, (0, count), value=DROPPED).topk(count)  # (N, k)
        index = index.clamp(max=flat.shape[1] - 1)
        centers = cell_centers(
            logits.shape[2], logits.shape[3], generator.strides[level], generator.offset
        )  # (Hi*Wi, 4)
        anchors = cells[index % len(cells)] + centers.to(cells.device)[index // len(cells)]
        chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
        return self.rpn.box_coder.decode(chosen, anchors), best

    def _detect(
        self,
        features: dict[str, torch.Tensor],
        limits: torch.Tensor,
        proposals: torch.Tensor,
        image: torch.Tensor,
        slot: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return boxes (D, 4), scores (D,), classes (D,) and image indices (D,)."""
        settings, classes = self.heads.box_predictor.settings, self.heads.num_classes
        pooled, order = self._pool(self.heads.box_pooler, features, proposals, image)
        logits, deltas = self.heads.box_predictor(self._box_features(pooled))
        probs = logits.float().softmax(dim=1)  # (M, K + 1)
        boxes = self.heads.box_predictor.box2box_transform.decode(deltas.float(), proposals[order])
        boxes = boxes.unflatten(1, (-1, 4))  # (M, K or 1, 4)
        finite = boxes.isfinite().flatten(1).all(1) & probs.isfinite().all(1)  # (M,)
        scores = probs[:, :-1]
        scores = torch.where((scores > settings.score_thresh) & finite[:, None], scores, DROPPED)
        boxes = clip(boxes, limits[image[order]][:, None])
        # From proposals of all images to a table (N, P), whose missing rows are no candidates.
        shape = (limits.shape[0], self._max_proposals())
        place = (image[order], slot[order])
        scores = scores.new_full((*shape, classes), DROPPED).index_put(place, scores).transpose(1, 2)  # (N, K, P)
        boxes = boxes.new_zeros((*shape, boxes.shape[1], 4)).index_put(place, boxes).transpose(1, 2)
        boxes = boxes.expand(-1, classes, -1, -1).flatten(1, 2)  # (N, K * P, 4)
        return self._select(boxes, scores)

    def _max_proposals(self) -> int:
        settings = self.rpn.test_settings
        return min(settings.post_nms_topk, len(self.rpn.in_features) * settings.pre_nms_topk)

    def _select(self, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Suppress candidates per class and keep the best. Args: boxes (N, K * P, 4), scores (N, K, P)."""
        settings, classes, count = self.heads.box_predictor.settings, scores.shape[1], scores.shape[2]
        limit = classes * count if settings.topk < 0 else min(settings.topk, classes * count)
        scores = self.suppress(
            boxes.reshape(-1, count, 4), scores.reshape(-1, count), settings.nms_thresh, min(limit, count)
        )
        best, index = scores.reshape(-1, classes * count).topk(limit)  # (N, limit)
        top = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        not_empty = (top[..., 2:] > top[..., :2]).all(-1)
        image, rank = ((best > KEPT) & not_empty).nonzero(as_tuple=True)
        return top[image, rank], best[image, rank], index[image, rank] // count, image

    def _box_features(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the box head; see :meth:`MaskRCNNBoxHead.forward`."""
        head = self.heads.box_head
        for name in head.convs:
            x = head.get_submodule(name)(x)
        for name in head.fcs:
            layer = head.get_submodule(name)
            x = F.linear(x.flatten(1), layer.weight, layer.bias).relu()
        return x

    def _masks(
        self, features: dict[str, torch.Tensor], boxes: torch.Tensor, classes: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Return probabilities (D, S, S) inside the boxes."""
        pooled, order = self._pool(self.heads.mask_pooler, features, boxes, image)
        logits = self.heads.mask_head(pooled)  # (D, K or 1, S, S)
        if logits.shape[1] == 1:
            chosen = logits[:, 0]
        else:
            index = classes[order][:, None, None, None].expand(-1, 1, *logits.shape[2:])
            chosen = logits.gather(1, index)[:, 0]
        probabilities = chosen.float().sigmoid()
        return torch.zeros_like(probabilities).index_put((order,), probabilities)

    def _pool(
        self, pooler: ROIPooler, features: dict[str, torch.Tensor], boxes: torch.Tensor, image: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pool boxes level by level: (M, C, P, P), and the index (M,) of the box that each row belongs to."""
        level = pooler.assign_levels(boxes)
        rois = torch.cat((image[:, None].float(), boxes), dim=1)  # (M, 5)
        pooled, order = [], []
        for index, name in enumerate(self.heads.in_features):
            chosen = (level == index).nonzero().flatten()
            pooled.append(
                roi_align(
                    features[name].float(),
                    rois[chosen],
                    pooler.output_size,
                    pooler.scales[index],
                    pooler.sampling_ratio,
                    pooler.aligned,
                )
            )
            order.append(chosen)
        return torch.cat(pooled).to(self.dtype), torch.cat(order)


def check_components(model: nn.Module) -> MaskRCNN:
    """Return the model if all its components are this plugin's.

    Raises:
        UserError: one is not.
    """
    expected: list[tuple[str, Any, type]] = [
        ("MODEL.META_ARCHITECTURE", model, MaskRCNN),
        ("MODEL.BACKBONE.NAME", getattr(model, "backbone", None), FPN),
        ("MODEL.PROPOSAL_GENERATOR.NAME", getattr(model, "proposal_generator", None), MaskRCNNRPN),
        ("MODEL.ROI_HEADS.NAME", getattr(model, "roi_heads", None), MaskRCNNROIHeads),
    ]
    if isinstance(model, MaskRCNN) and isinstance(model.roi_heads, MaskRCNNROIHeads):
        generator = getattr(model.proposal_generator, "anchor_generator", None)
        expected.append(("MODEL.ANCHOR_GENERATOR.NAME", generator, MaskRCNNAnchorGenerator))
        expected.append(("MODEL.ROI_BOX_HEAD.NAME", model.roi_heads.box_head, MaskRCNNBoxHead))
        if model.roi_heads.mask_head is not None:
            expected.append(("MODEL.ROI_MASK_HEAD.NAME", model.roi_heads.mask_head, MaskRCNNMaskHead))
    for key, part, kind in expected:
        if not isinstance(part, kind):
            raise UserError(
                f"{key}: {type(part).__name__} cannot be exported; expected {kind.__name__}, this plugin's component."
            )
    assert isinstance(model, MaskRCNN)
    return model
