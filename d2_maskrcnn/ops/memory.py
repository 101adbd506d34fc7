"""Large CPU buffers on huge pages: first-touch page faults, not arithmetic, take most of the time of a fast pooling.

A fresh tensor of 50 MB costs 12,000 page faults of 4 KB, more than pooling 1,000 boxes into it. Asked to, Linux backs
the same memory with pages of 2 MB. It is a hint: where it can't be followed, nothing changes but the time.
"""

import ctypes
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch

MADV_HUGEPAGE = 14  # <linux/mman.h>
PAGE, HUGE_PAGE = 4096, 2 << 20
# Up to this size, glibc's malloc takes a buffer from memory that it has handed out before, which has its pages already.
LEAST_BYTES = 32 << 20


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        function.restype = ctypes.c_int
    return function


_madvise = _find_madvise()


def empty_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised contiguous tensor, with dtype and device of ``like``; a large one on a CPU has huge pages."""
    buffer = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    if buffer.device.type == "cpu" and ask_for_huge_pages(buffer):
        # One thread fetches the pages: of two that touch the same new page, one clears 2 MB in vain.
        buffer.view(-1)[:: HUGE_PAGE // buffer.element_size()].zero_()
    return buffer


def zero_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of zeros, with dtype and device of ``like``. The parts of a large one on a CPU that are never
    written to cost nothing: the system hands out pages that are zero.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < LEAST_BYTES:
        return torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    # NumPy asks for memory with calloc, which knows that new pages are zero; PyTorch would write all of them.
    buffer = torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(like.dtype).view(tuple(shape))
    ask_for_huge_pages(buffer)
    return buffer


def ask_for_huge_pages(buffer: torch.Tensor) -> bool:
    """Whether ``buffer`` is large enough to gain by huge pages and the system can be asked for them, which is done."""
    num_bytes = buffer.numel() * buffer.element_size()
    if _madvise is None or num_bytes < LEAST_BYTES:
        return False
    start = -(-buffer.data_ptr() // PAGE) * PAGE
    end = (buffer.data_ptr() + num_bytes) // PAGE * PAGE
    _madvise(start, end - start, MADV_HUGEPAGE)  # refused (no such kernel feature): ordinary pages serve
    return True
