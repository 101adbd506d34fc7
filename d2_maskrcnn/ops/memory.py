"""Large CPU buffers on huge pages: first-touch page faults, not arithmetic, take most of the time of a fast pooling.

A fresh tensor of 50 MB costs 12,000 page faults of 4 KB, more than pooling 1,000 boxes into it. Asked to, Linux backs
the same memory with pages of 2 MB. It is a hint: where it can't be followed, nothing changes but the time.
"""

import ctypes
import sys
from collections.abc import Callable, Sequence

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
    num_bytes = buffer.numel() * buffer.element_size()
    if _madvise is not None and buffer.device.type == "cpu" and num_bytes >= LEAST_BYTES:
        start = -(-buffer.data_ptr() // PAGE) * PAGE
        end = (buffer.data_ptr() + num_bytes) // PAGE * PAGE
        _madvise(start, end - start, MADV_HUGEPAGE)  # refused (no such kernel feature): ordinary pages serve
        # One thread fetches the pages: of two that touch the same new page, one clears 2 MB in vain.
        buffer.view(-1)[:: HUGE_PAGE // buffer.element_size()].zero_()
    return buffer
