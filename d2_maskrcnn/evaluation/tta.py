"""Test-time augmentation: merge the detections of several sizes of an image and of the mirrored image."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.data.raw_images import apply_resize
from d2_maskrcnn.distributed import unwrap
from d2_maskrcnn.modeling.roi_heads.inference import postprocess
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances


class TestTimeAugmentation(nn.Module):
    """Wrap a Mask R-CNN for inference with several views of each image.

    The boxes of all views are merged by non-maximum suppression in each class. Each view then predicts the masks of the
    merged boxes, and mask probabilities are averaged.

    Args:
        cfg: ``TEST.AUG`` gives the lengths of the shorter side, the limit of the longer one, and whether to mirror.
        model: a ``MaskRCNN``; may be wrapped in DistributedDataParallel.
    """

    __test__ = False  # pytest would collect a class of this name

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        super().__init__()
        self.model = unwrap(model)
        self.sizes, self.max_size, self.flip = tuple(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP
        self.nms_threshold = cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Predict a batch.

        Args:
            batched_inputs: dicts with ``image`` (C, H, W) and the size ``height``, ``width`` of the output frame.

        Returns:
            ``{"instances": ...}`` for each input, as the model returns.
        """
        return [{"instances": self._predict(item)} for item in batched_inputs]

    def _predict(self, item: dict[str, Any]) -> Instances:
        height, width = item.get("height", item["image"].shape[1]), item.get("width", item["image"].shape[2])
        views = list(self._views(item["image"]))
        merged = self._merge([self._detect(view, flipped, (height, width)) for view, flipped in views])
        if len(merged) and self.model.roi_heads.mask_head is not None:
            masks = [self._masks(view, flipped, merged) for view, flipped in views]
            merged.pred_masks = torch.stack(masks).mean(dim=0)  # (n, 1, S, S)
        return postprocess(merged, height, width)

    def _views(self, image: torch.Tensor) -> Iterator[tuple[torch.Tensor, bool]]:
        """Yield (view (C, h, w), whether it is mirrored)."""
        array = image.permute(1, 2, 0).cpu().numpy()  # (H, W, C)
        for size in self.sizes:
            view = apply_resize(T.ResizeShortestEdge(size, self.max_size).get_transform(array), array)
            for flipped in (False, True) if self.flip else (False,):
                pixels = view[:, ::-1] if flipped else view
                yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), flipped

    def _detect(self, view: torch.Tensor, flipped: bool, size: tuple[int, int]) -> Instances:
        """Detect boxes in a view; return them in the output frame of ``size`` (H, W)."""
        detections = self.model.inference([{"image": view}], do_postprocess=False)[0]
        boxes = _to_frame(detections.pred_boxes.tensor, (view.shape[1], view.shape[2]), size, flipped)
        return Instances(size, pred_boxes=Boxes(boxes), scores=detections.scores, pred_classes=detections.pred_classes)

    def _merge(self, detections: list[Instances]) -> Instances:
        merged = Instances.cat(detections)
        boxes = merged.pred_boxes.tensor
        kept = batched_nms(boxes, merged.scores, merged.pred_classes, self.nms_threshold)
        return merged[kept[: self.max_detections]]

    def _masks(self, view: torch.Tensor, flipped: bool, merged: Instances) -> torch.Tensor:
        """Predict (N, 1, S, S) mask probabilities inside each merged box."""
        size = (view.shape[1], view.shape[2])
        boxes = _from_frame(merged.pred_boxes.tensor, merged.image_size, size, flipped)
        instances = Instances(size, pred_boxes=Boxes(boxes), pred_classes=merged.pred_classes)
        masks = self.model.inference([{"image": view}], [instances], do_postprocess=False)[0].pred_masks
        return masks.flip(-1) if flipped else masks


def _to_frame(boxes: torch.Tensor, size: tuple[int, int], frame: tuple[int, int], flipped: bool) -> torch.Tensor:
    """Transform boxes (N, 4) XYXY from a view of ``size`` (H, W) to a frame (H, W)."""
    x0, y0, x1, y1 = boxes.unbind(1)
    if flipped:
        x0, x1 = size[1] - x1, size[1] - x0
    scaled = torch.stack([x0, y0, x1, y1], dim=1)
    return scaled * scaled.new_tensor([frame[1] / size[1], frame[0] / size[0]] * 2)


def _from_frame(boxes: torch.Tensor, frame: tuple[int, int], size: tuple[int, int], flipped: bool) -> torch.Tensor:
    """Invert :func:`_to_frame`."""
    x0, y0, x1, y1 = (boxes * boxes.new_tensor([size[1] / frame[1], size[0] / frame[0]] * 2)).unbind(1)
    if flipped:
        x0, x1 = size[1] - x1, size[1] - x0
    return torch.stack([x0, y0, x1, y1], dim=1)
