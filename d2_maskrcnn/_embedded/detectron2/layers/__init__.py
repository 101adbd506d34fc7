"""Layers and operators: convolution, normalization, non-maximum suppression, ROIAlign, mask pasting."""

import importlib
from typing import TYPE_CHECKING, Any

from detectron2._names import lookup
from detectron2.layers.batch_norm import FrozenBatchNorm2d, LayerNorm, get_norm
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.nms import batched_nms, nms
from detectron2.layers.roi_align import ROIAlign, roi_align
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.sync_batch_norm import NaiveSyncBatchNorm
from detectron2.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    empty_input_loss_func_wrapper,
    interpolate,
    move_device_like,
    nonzero_tuple,
    shapes_to_tensor,
)

if TYPE_CHECKING:
    from torchvision.ops import complete_box_iou_loss as ciou_loss
    from torchvision.ops import distance_box_iou_loss as diou_loss

__all__ = [
    "BatchNorm2d",
    "CNNBlockBase",
    "Conv2d",
    "ConvTranspose2d",
    "FrozenBatchNorm2d",
    "LayerNorm",
    "Linear",
    "NaiveSyncBatchNorm",
    "ROIAlign",
    "ShapeSpec",
    "batched_nms",
    "cat",
    "ciou_loss",
    "cross_entropy",
    "diou_loss",
    "empty_input_loss_func_wrapper",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nms",
    "nonzero_tuple",
    "paste_masks_in_image",
    "roi_align",
    "shapes_to_tensor",
]

# Imported at first use, since importing torchvision takes longer than importing PyTorch.
_OF_TORCHVISION = {
    "ciou_loss": "complete_box_iou_loss",
    "diou_loss": "distance_box_iou_loss",
}
_find_missing = lookup(__name__)


def __getattr__(name: str) -> Any:
    if name in _OF_TORCHVISION:
        return getattr(importlib.import_module("torchvision.ops"), _OF_TORCHVISION[name])
    return _find_missing(name)
