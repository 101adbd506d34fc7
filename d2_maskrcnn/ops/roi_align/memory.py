"""Reuse large CPU buffers: fetching new pages takes most of the time of a fast pooling.

A new tensor of 50 MB costs 12,000 page faults of 4 KB, more than pooling 1,000 boxes into it. PyTorch returns it to the
system as soon as it is freed, so every call pays again, and on a virtual machine the host as well. Here, memory that is
no longer used is kept for the next buffer of similar size, and new memory is requested in pages of 2 MB.
"""

import ctypes
import math
import sys
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch

MIN_BYTES = 8 << 20  # of a buffer; malloc reuses smaller ones itself
MAX_KEPT_BYTES = 256 << 20  # of unused memory in total
MADV_HUGEPAGE = 14  # <linux/mman.h>
PAGE, HUGE_PAGE, CACHE_LINE = 4096, 2 << 20, 64


class Store:
    """Unused memory, oldest first."""

    def __init__(self) -> None:
        self._unused: dict[int, np.ndarray] = {}
        self._lock = threading.RLock()  # the garbage collector may call keep() while this thread is in take()

    def take(self, num_bytes: int) -> np.ndarray | None:
        """Remove and return ``num_bytes`` to twice as many uint8, or None if there is no such memory."""
        with self._lock:
            fitting = [memory for memory in self._unused.values() if num_bytes <= memory.nbytes <= 2 * num_bytes]
            return self._unused.pop(id(min(fitting, key=len))) if fitting else None

    def keep(self, memory: np.ndarray) -> None:
        """Store memory that is no longer used, and free the oldest above ``MAX_KEPT_BYTES``."""
        with self._lock:
            self._unused[id(memory)] = memory
            while sum(kept.nbytes for kept in self._unused.values()) > MAX_KEPT_BYTES:
                del self._unused[next(iter(self._unused))]

    def clear(self) -> None:
        """Free all unused memory."""
        with self._lock:
            self._unused.clear()


_store = Store()


def free_unused_buffers() -> None:
    """Free the memory that is kept for the next buffers, before work that needs memory of its own."""
    _store.clear()


def empty_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Return an uninitialized contiguous tensor with dtype and device of ``like``."""
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < MIN_BYTES:
        return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    memory = _store.take(num_bytes)
    if memory is None:
        memory = new_memory(num_bytes)
        memory[::HUGE_PAGE] = 0  # fetch the pages in one thread: if two touch the same one, both clear its 2 MB
    return as_tensor(memory, shape, like.dtype)


def zero_buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor of zeros with dtype and device of ``like``.

    Parts of new memory that are never written cost nothing: the system provides zero pages.
    """
    num_bytes = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or num_bytes < MIN_BYTES:
        return torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    memory = _store.take(num_bytes)
    if memory is not None:
        return as_tensor(memory, shape, like.dtype).zero_()
    return as_tensor(new_memory(num_bytes), shape, like.dtype)


def as_tensor(memory: np.ndarray, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor in the first bytes of ``memory``, which is stored once the tensor and its views are gone."""
    used = memory[: math.prod(shape) * dtype.itemsize]
    weakref.finalize(used, _store.keep, memory).atexit = False  # the tensor's storage references ``used``
    return torch.from_numpy(used).view(dtype).view(tuple(shape))


def new_memory(num_bytes: int) -> np.ndarray:
    """Return at least ``num_bytes`` zeros (uint8), aligned to a cache line, on huge pages if the system has them."""
    size = -(-num_bytes // HUGE_PAGE) * HUGE_PAGE
    # NumPy uses calloc, which knows that new pages are zero; PyTorch would write all of them.
    memory = np.zeros(size + CACHE_LINE, dtype=np.uint8)
    memory = memory[-memory.ctypes.data % CACHE_LINE :][:size]
    if _madvise is not None:
        start, end = -(-memory.ctypes.data // PAGE) * PAGE, (memory.ctypes.data + size) // PAGE * PAGE
        _madvise(start, end - start, MADV_HUGEPAGE)  # if the kernel refuses, ordinary pages are used
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
