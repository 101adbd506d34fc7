"""Building blocks of models: convolution with normalisation, normalisation layers, suppression, pasting of masks."""

from detectron2.layers.batch_norm import FrozenBatchNorm2d, LayerNorm, get_norm
from detectron2.layers.blocks import CNNBlockBase
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.layers.nms import batched_nms
from detectron2.layers.roi_align import ROIAlign
from detectron2.layers.shape_spec import ShapeSpec
from detectron2.layers.sync_batch_norm import NaiveSyncBatchNorm
from detectron2.layers.wrappers import (
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Linear,
    cat,
    cross_entropy,
    interpolate,
    move_device_like,
    nonzero_tuple,
)

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
    "cross_entropy",
    "get_norm",
    "interpolate",
    "move_device_like",
    "nonzero_tuple",
    "paste_masks_in_image",
]
