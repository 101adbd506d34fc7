"""Choose the implementation of the operator: ``D2_MASKRCNN_ROI_ALIGN=auto|portable|cuda|torchvision``."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.ops.roi_align import cpu
from d2_maskrcnn.ops.roi_align.cuda import kernels, self_check
from d2_maskrcnn.ops.roi_align.levels import PoolingSpec, assign_levels, coordinate_dtype, image_indices

VARIABLE = "D2_MASKRCNN_ROI_ALIGN"
CHOICES = ("auto", "portable", "cuda", "torchvision")
FAR_OUTSIDE = -1e4  # coordinate of boxes that pool zeros

logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """The two functions of an implementation, with the signatures of those in :mod:`d2_maskrcnn.ops.roi_align.cpu`."""

    pool: Callable[..., torch.Tensor]
    gradients: Callable[..., list[torch.Tensor]]


def torchvision_pool(
    features: Sequence[torch.Tensor], boxes: torch.Tensor, boxes_per_image: Sequence[int], spec: PoolingSpec
) -> torch.Tensor:
    """Pool boxes with torchvision's operator level by level, for comparison.

    torchvision's gradient is not deterministic on a GPU. It has no half-precision kernels for CPUs; features are
    converted to float32 first.

    Args and result: see :func:`d2_maskrcnn.ops.roi_align.cpu.pool`.
    """
    from torchvision import ops  # takes longer than importing PyTorch

    dtype = coordinate_dtype(boxes, *features)
    images = image_indices(boxes_per_image, boxes.device).to(dtype)
    levels = assign_levels(boxes.to(dtype), len(features), spec.canonical_box_size, spec.canonical_level)
    rois = torch.cat([images[:, None], boxes.to(dtype)], dim=1)  # (M, 5)
    rois = torch.where(boxes.isfinite().all(dim=1, keepdim=True), rois, FAR_OUTSIDE)
    rois[:, 0] = images
    pooled = features[0].new_zeros((len(boxes), *spec.output_size, features[0].shape[1])).permute(0, 3, 1, 2)
    for level, (feature, scale) in enumerate(zip(features, spec.scales, strict=True)):
        chosen = (levels == level).nonzero().flatten()
        level_bins = ops.roi_align(
            feature.to(dtype), rois[chosen], list(spec.output_size), scale, spec.sampling_ratio or -1, spec.aligned
        )
        pooled = pooled.index_copy(0, chosen, level_bins.to(pooled.dtype))
    return pooled.contiguous(memory_format=torch.channels_last)


def torchvision_gradients(
    grad: torch.Tensor,
    shapes: Sequence[Sequence[int]],
    boxes: torch.Tensor,
    boxes_per_image: Sequence[int],
    spec: PoolingSpec,
) -> list[torch.Tensor]:
    """Compute the features' gradients with torchvision; see :func:`d2_maskrcnn.ops.roi_align.cpu.gradients`."""
    with torch.enable_grad():  # the operator is linear, so its gradient does not depend on the features
        features = [grad.new_zeros(tuple(shape)).requires_grad_() for shape in shapes]
        pooled = torchvision_pool(features, boxes, boxes_per_image, spec)
    gradients = torch.autograd.grad(pooled, features, grad)
    return [gradient.contiguous(memory_format=torch.channels_last) for gradient in gradients]


PORTABLE = Backend(cpu.pool, cpu.gradients)
CUDA = Backend(kernels.pool, kernels.gradients)
TORCHVISION = Backend(torchvision_pool, torchvision_gradients)


def choose_backend(device: torch.device, scalars: torch.dtype, coords: torch.dtype) -> Backend:
    """Choose the implementation for features of type ``scalars`` on ``device`` and coordinates of type ``coords``.

    ``auto`` takes the CUDA kernels on an NVIDIA GPU and the portable path elsewhere. Where the kernels are unavailable
    or fail their self-check, the portable path is used after one message: speed can change, results do not.

    Raises:
        UserError: the variable has an unknown value, or ``cuda`` is forced and unavailable.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise UserError(f"{VARIABLE}={choice}: expected one of {', '.join(CHOICES)}")
    if choice == "portable" or (choice == "auto" and device.type != "cuda"):
        return PORTABLE
    if choice == "torchvision":
        return TORCHVISION
    problem = cuda_problem(device, scalars, coords)
    if problem is None:
        return CUDA
    if choice == "cuda":
        raise UserError(f"{VARIABLE}=cuda: {problem}; unset it to use another implementation")
    _report_once(str(problem), isinstance(problem, self_check.WrongResultError))
    return PORTABLE


@cache
def cuda_problem(device: torch.device, scalars: torch.dtype, coords: torch.dtype) -> kernels.KernelError | None:
    """Return why the CUDA kernels cannot run on ``device``, or None. The first call compiles, loads and checks them."""
    try:
        kernels.check_device(device)
        kernels.load_kernels(device.index, scalars, coords)
        self_check.check_kernels(device, scalars, coords)
    except kernels.KernelError as error:
        return error
    return None


@cache
def _report_once(problem: str, wrong: bool) -> None:
    message = f"ROIAlign runs without our CUDA kernels, more slowly and with the same results: {problem}"
    if wrong:
        logger.error(message)
    else:
        warnings.warn(message, stacklevel=2)
