"""The registered operator ``d2_maskrcnn::multilevel_roi_align``: schema, autograd, shapes and input checks."""

from collections.abc import Sequence
from typing import Any

import torch

from d2_maskrcnn.ops.roi_align.backends import choose_backend
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, coordinate_dtype

FORWARD = "d2_maskrcnn::multilevel_roi_align"
BACKWARD = "d2_maskrcnn::multilevel_roi_align_backward"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_SETTINGS = (
    "int[] output_size, float[] scales, int sampling_ratio, bool aligned, float canonical_box_size, int canonical_level"
)
_SCHEMAS = {
    FORWARD: "(Tensor[] features, Tensor boxes, SymInt[] boxes_per_image, {}) -> Tensor",
    BACKWARD: "(Tensor grad, Tensor boxes, SymInt[] boxes_per_image, SymInt[] heights, SymInt[] widths, {}) "
    "-> Tensor[]",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(_name, _schema.format(_SETTINGS))


def multilevel_roi_align(
    features: Sequence[torch.Tensor],
    boxes: Sequence[torch.Tensor],
    output_size: int | tuple[int, int],
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
    canonical_box_size: float = 224.0,
    canonical_level: int = 2,
) -> torch.Tensor:
    """Pool each box from the pyramid level that fits its size.

    ROIAlign (arXiv:1703.06870, section 3) with the level assignment of FPN (arXiv:1612.03144, section 4.2). A box is
    divided into a grid of bins; a bin is the mean of bilinear samples inside it. A sample up to one cell outside the
    feature map takes the border's value, one further outside is zero. Boxes with non-finite coordinates give zeros.
    Interpolation weights and sums are float32 whatever the features are (float64 for float64 features or boxes).
    Differentiable in the features any number of times, not in the boxes. The same inputs give the same bits, gradients
    included.

    >>> p2, p3 = torch.randn(1, 8, 50, 60), torch.randn(1, 8, 25, 30)
    >>> boxes = torch.tensor([[10.0, 20.0, 90.0, 80.0], [0.0, 0.0, 240.0, 200.0]])
    >>> multilevel_roi_align([p2, p3], [boxes], 7, [1 / 4, 1 / 8]).shape
    torch.Size([2, 8, 7, 7])

    Args:
        features: (N, C, Hi, Wi) of each level, finest first; float32, float64, bfloat16 or float16. Channels-last
            memory is read in place; other memory is converted by backends that need it.
        boxes: (Mi, 4) XYXY of each image, in pixels of the network input.
        output_size: bins of a box along y and x, or one number for both.
        scales: feature cells per input pixel of each level (1 / stride).
        sampling_ratio: samples along each side of a bin; 0 takes one per cell that the bin covers, rounded up.
        aligned: shift boxes by half a cell, so that pixels and cells coincide (Detectron2's ROIAlignV2). False is the
            legacy operator, which also makes boxes at least one cell wide and high.
        canonical_box_size: side in pixels of the square box that belongs to ``canonical_level``.
        canonical_level: index of that level among ``features``: 2 for the FPN paper's k0 = 4 with P2 first.

    Returns:
        (sum of Mi, C, height, width) in the features' dtype and channels-last memory, image after image.

    Raises:
        ValueError: the numbers of levels, scales and images, the shapes or the settings do not match.
        TypeError: the features' dtypes differ or are not supported.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    _check_features(features, scales)
    _check_boxes(boxes, features[0])
    _check_settings(size, sampling_ratio)
    if not boxes:  # no images
        return features[0].new_zeros((0, features[0].shape[1], *size))
    boxes_per_image = [image_boxes.shape[0] for image_boxes in boxes]
    if torch.jit.is_tracing():  # which replaces sizes by tensors
        boxes_per_image = [int(number) for number in boxes_per_image]
    return torch.ops.d2_maskrcnn.multilevel_roi_align(
        list(features),
        torch.cat(list(boxes)),
        boxes_per_image,
        list(size),
        [float(scale) for scale in scales],
        sampling_ratio,
        aligned,
        float(canonical_box_size),
        canonical_level,
    )


def _check_features(features: Sequence[torch.Tensor], scales: Sequence[float]) -> None:
    if not features or len(features) != len(scales):
        raise ValueError(
            f"{len(features)} feature levels and {len(scales)} scales: expected the same number, at least one"
        )
    first = features[0]
    for feature in features:
        if feature.dim() != 4 or feature.shape[:2] != first.shape[:2] or 0 in feature.shape[1:]:
            shapes = [tuple(feature.shape) for feature in features]
            raise ValueError(
                f"feature shapes {shapes}: expected (N, C, Hi, Wi), N and C the same on all levels, no C, H or W of 0"
            )
        if feature.dtype != first.dtype or feature.dtype not in DTYPES:
            dtypes = [str(feature.dtype) for feature in features]
            raise TypeError(
                f"feature dtypes {dtypes}: expected one of {[str(dtype) for dtype in DTYPES]}, the same on all levels"
            )
        if feature.device != first.device:
            raise ValueError(f"features on {feature.device} and on {first.device}: expected one device")


def _check_boxes(boxes: Sequence[torch.Tensor], feature: torch.Tensor) -> None:
    if len(boxes) != feature.shape[0]:
        raise ValueError(f"boxes of {len(boxes)} images for features of {feature.shape[0]} images")
    for image_boxes in boxes:
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f"boxes of shape {tuple(image_boxes.shape)}: expected (M, 4)")
        if image_boxes.device != feature.device:
            raise ValueError(f"boxes on {image_boxes.device}, features on {feature.device}: expected one device")


def _check_settings(output_size: tuple[int, ...], sampling_ratio: int) -> None:
    if len(output_size) != 2 or min(output_size) < 1:
        raise ValueError(f"output_size {output_size}: expected one or two numbers of at least 1")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio {sampling_ratio}: expected at least 1, or 0 for adaptive sampling")


def _spec(settings: Sequence[Any]) -> PoolingSpec:
    (height, width), scales, *rest = settings
    return PoolingSpec((height, width), tuple(scales), *rest)


@torch.library.impl(FORWARD, "default")
def _forward(
    features: list[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], *settings: Any
) -> torch.Tensor:
    backend = choose_backend(boxes.device, features[0].dtype, coordinate_dtype(boxes, *features))
    return backend.pool(features, boxes, boxes_per_image, _spec(settings))


@torch.library.impl(BACKWARD, "default")
def _backward(
    grad: torch.Tensor,
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    *settings: Any,
) -> list[torch.Tensor]:
    shapes = _feature_shapes(grad, boxes_per_image, heights, widths)
    backend = choose_backend(boxes.device, grad.dtype, coordinate_dtype(boxes, grad))
    return backend.gradients(grad, shapes, boxes, boxes_per_image, _spec(settings))


def _feature_shapes(
    grad: torch.Tensor, boxes_per_image: Sequence[int], heights: Sequence[int], widths: Sequence[int]
) -> list[tuple[int, int, int, int]]:
    return [(len(boxes_per_image), grad.shape[1], height, width) for height, width in zip(heights, widths, strict=True)]


@torch.library.register_fake(FORWARD)
def _forward_shape(
    features: list[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], *settings: Any
) -> torch.Tensor:
    height, width = settings[0]
    return features[0].new_empty((boxes.shape[0], height, width, features[0].shape[1])).permute(0, 3, 1, 2)


@torch.library.register_fake(BACKWARD)
def _backward_shape(
    grad: torch.Tensor,
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    heights: Sequence[int],
    widths: Sequence[int],
    *settings: Any,
) -> list[torch.Tensor]:
    shapes = _feature_shapes(grad, boxes_per_image, heights, widths)
    return [grad.new_empty((n, height, width, c)).permute(0, 3, 1, 2) for n, c, height, width in shapes]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    features, boxes, *rest = inputs
    ctx.save_for_backward(boxes)
    ctx.heights, ctx.widths = [f.shape[2] for f in features], [f.shape[3] for f in features]
    ctx.boxes_per_image, *ctx.settings = rest


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    (boxes,) = ctx.saved_tensors
    gradients = torch.ops.d2_maskrcnn.multilevel_roi_align_backward(
        grad, boxes, ctx.boxes_per_image, ctx.heights, ctx.widths, *ctx.settings
    )
    return gradients, None, None, *(None for _ in ctx.settings)


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    _, boxes, ctx.boxes_per_image, _, _, *ctx.settings = inputs
    ctx.save_for_backward(boxes)


def _differentiate_backward(ctx: Any, grads: list[torch.Tensor]) -> tuple[Any, ...]:
    # The gradient is the transpose of the operator, so its own gradient is the operator.
    (boxes,) = ctx.saved_tensors
    pooled = torch.ops.d2_maskrcnn.multilevel_roi_align(list(grads), boxes, ctx.boxes_per_image, *ctx.settings)
    return pooled, None, None, None, None, *(None for _ in ctx.settings)


torch.library.register_autograd(FORWARD, _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd(BACKWARD, _differentiate_backward, setup_context=_save_for_double_backward)
