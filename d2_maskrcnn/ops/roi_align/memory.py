"""Large CPU buffers that are handed out again: most of the time of a fast pooling goes into fetching pages.

A fresh tensor of 50 MB costs 12,000 page faults of 4 KB, more than pooling 1,000 boxes into it. PyTorch gives it back
to the system as soon as it is freed, so that each call pays anew, and on a virtual machine the host once more. Here,
memory that nobody uses any more waits for the next buffer of like size, and new memory is asked for in pages of 2 MB.
"""

import ctypes
import math
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch

LEAST_BYTES = 8 << 20  # of a buffer: malloc keeps smaller ones itself
KEPT_BYTES = 256 << 20  # waiting at most, altogether
MADV_HUGEPAGE = 14  # <linux/mman.h>
PAGE, HUGE_PAGE, CACHE_LINE = 4096, 2 << 20, 64


class Store:
    """Memory that waits to be used again, oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[int, np.ndarray] = {}
        self._lock = threading.RLock()  # the garbage collector may call keep() while this thread is in take()

    def take(self, num_bytes: int) -> np.ndarray | None:
        """At least ``num_bytes`` uint8, and at most twice as many; None if there are none."""
        with self._lock:
            fitting = [memory for memory in self._waiting.values() if num_bytes <= memory.nbytes <= 2 * num_bytes]
            return self._waiting.pop(id(min(fitting, key=len))) if fitting else None

    def keep(self, memory: np.ndarray) -> None:
        """Takes what nobody uses any more; what has waited longest goes where that is too much."""
        with self._lock:
            self._waiting[id(memory)] = memory
            while sum(kept.nbytes for kept in self._waiting.values()) > KEPT_BYTES:
                del self._waiting[next(iter(self._waiting))]


_store = Store()


def empty_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised contiguous tensor, with dtype and device of ``like``."""
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < LEAST_BYTES:
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    memory = _store.take(num_bytes)
    if memory is None:
        memory = new_memory(num_bytes)
        memory[::HUGE_PAGE] = 0  # one thread fetches the pages: of two that touch the same, one clears 2 MB in vain
    return as_tensor(memory, shape, like.dtype)


def zero_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor of zeros, with dtype and device of ``like``.

    The parts of new memory that are never written to cost nothing: the system hands out pages that are zero.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < LEAST_BYTES:
        return torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    memory = _store.take(num_bytes)
    if memory is not None:
        return as_tensor(memory, shape, like.dtype).zero_()
    return as_tensor(new_memory(num_bytes), shape, like.dtype)


def as_tensor(memory: np.ndarray, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor in the first bytes of ``memory``, which is kept for others once the tensor and its views are gone."""
    lent = memory[: math.prod(shape) * dtype.itemsize]
    weakref.finalize(lent, _store.keep, memory).atexit = False  # the tensor's storage holds ``lent``
    return torch.from_numpy(lent).view(dtype).view(tuple(shape))


def new_memory(num_bytes: int) -> np.ndarray:
    """Zeros (at least ``num_bytes``,) uint8 that begin at a cache line, on huge pages where the system has them."""
    size = -(-num_bytes // HUGE_PAGE) * HUGE_PAGE
    # NumPy asks for memory with calloc, which knows that new pages are zero; PyTorch would write all of them.
    memory = np.zeros(size + CACHE_LINE, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % CACHE_LINE :][:size]
    if _madvise is not None:
        start, end = -(-memory.ctypes.data // PAGE) * PAGE, (memory.ctypes.data + size) // PAGE * PAGE
        _madvise(start, end - start, MADV_HUGEPAGE)  # refused (no such kernel feature): ordinary pages serve
    return memory


def _find_madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        function.restype = ctypes.c_int
    return function


_madvise = _find_madvise()
