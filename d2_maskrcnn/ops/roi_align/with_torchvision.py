"""ROIAlign through torchvision's operator, level by level: for comparison, and the way out where our own paths fail.

Its gradient is not deterministic on a GPU, and it has no half-precision kernels for CPUs (float32 is used there).
"""

from collections.abc import Sequence

import torch
from torchvision.ops import roi_align

from d2_maskrcnn.ops.roi_align.levels import assign_levels
from d2_maskrcnn.ops.roi_align.spec import PoolingSpec, coordinate_dtype, image_indices


def pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pools boxes (M, 4) from features [(N, C, Hi, Wi)]: (M, C, Ph, Pw) in channels-last memory."""
    dtype = coordinate_dtype(boxes, *features)
    images = image_indices(boxes_per_image, boxes.device).to(dtype)
    levels = assign_levels(boxes.to(dtype), len(features), spec.canonical_box_size, spec.canonical_level)
    rois = torch.cat([images[:, None], boxes.to(dtype)], dim=1)  # (M, 5)
    rois = torch.where(boxes.isfinite().all(dim=1, keepdim=True), rois, -1e4)  # far outside: zeros
    rois[:, 0] = images
    pooled = features[0].new_zeros((len(boxes), *spec.output_size, features[0].shape[1])).permute(0, 3, 1, 2)
    for level, (feature, scale) in enumerate(zip(features, spec.scales, strict=True)):
        chosen = (levels == level).nonzero().flatten()
        level_bins = roi_align(
            feature.to(dtype), rois[chosen], list(spec.output_size), scale, spec.sampling_ratio or -1, spec.aligned
        )
        pooled = pooled.index_copy(0, chosen, level_bins.to(pooled.dtype))
    return pooled.contiguous(memory_format=torch.channels_last)


def gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Gradients [(N, C, Hi, Wi)] of the features, in channels-last memory, from those of the bins (M, C, Ph, Pw)."""
    # The operator is linear, so its gradient does not depend on the features.
    with torch.enable_grad():
        features = [grad.new_zeros(tuple(shape)).requires_grad_() for shape in shapes]
        pooled = pool(features, boxes, boxes_per_image, spec)
    found = torch.autograd.grad(pooled, features, grad)
    return [gradient.contiguous(memory_format=torch.channels_last) for gradient in found]
