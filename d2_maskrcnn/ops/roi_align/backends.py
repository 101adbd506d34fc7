"""Which implementation of the operator runs: ``D2_MASKRCNN_ROI_ALIGN=auto|portable|cuda|torchvision``."""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.ops.roi_align import cpu as portable
from d2_maskrcnn.ops.roi_align import with_torchvision
from d2_maskrcnn.ops.roi_align.cuda import kernels as cuda

VARIABLE = "D2_MASKRCNN_ROI_ALIGN"
CHOICES = ("auto", "portable", "cuda", "torchvision")


class Backend(NamedTuple):
    """The two functions of an implementation, with the arguments of those in :mod:`d2_maskrcnn.ops.roi_align.cpu`."""

    pool: Callable[..., torch.Tensor]
    gradients: Callable[..., list[torch.Tensor]]


PORTABLE = Backend(portable.pool, portable.gradients)
CUDA = Backend(cuda.pool, cuda.gradients)
TORCHVISION = Backend(with_torchvision.pool, with_torchvision.gradients)


def choose_backend(device: torch.device, scalars: torch.dtype, coords: torch.dtype) -> Backend:
    """The implementation for features of type ``scalars`` on ``device``, with coordinates of type ``coords``.

    ``auto`` takes our CUDA kernels on an NVIDIA GPU and the portable path elsewhere, also where the kernels can't be
    had, which is said once: that may change speed, never results. A choice that is forced is kept, and its failure is
    an error.

    Raises:
        UserError: the variable has another value, or ``cuda`` is forced and can't be had.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise UserError(f"{VARIABLE}={choice}: expected one of {', '.join(CHOICES)}")
    if choice == "portable":
        return PORTABLE
    if choice == "torchvision":
        return TORCHVISION
    if choice == "auto" and device.type != "cuda":
        return PORTABLE
    problem = cuda.unavailable(device, scalars, coords)
    if problem is None:
        return CUDA
    if choice == "cuda":
        raise UserError(f"{VARIABLE}=cuda: {problem}; unset it to go on without our kernels")
    _warn_once(problem)
    return PORTABLE


@cache
def _warn_once(problem: str) -> None:
    warnings.warn(
        f"ROIAlign runs without our CUDA kernels, more slowly and with the same results: {problem}", stacklevel=2
    )
