"""End the program at once on Ctrl-C while it imports, where ``KeyboardInterrupt`` is lost or gives a long traceback.

It imports little, so that ``d2_maskrcnn/__main__.py`` can call it before anything else.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

EXIT_INTERRUPTED = 130  # d2_maskrcnn.errors has it too; importing that would take longer


def end_on_interrupt() -> None:
    """Let Ctrl-C end the program at once, unless another handler than Python's own is installed."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_program)


@contextlib.contextmanager
def interrupt_ends_program() -> Iterator[None]:
    """Let Ctrl-C end the program at once inside the block; after it, Python's own handler is installed."""
    end_on_interrupt()
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _end_program:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def is_spawned_worker() -> bool:
    """Return whether this process was started by :mod:`multiprocessing`, which is not imported for that."""
    module = sys.modules.get("multiprocessing")
    return module is not None and module.parent_process() is not None


def _end_program(number: int, frame: FrameType | None) -> None:
    if not is_spawned_worker():  # the parent prints it
        os.write(2, b"interrupted\n")
    os._exit(EXIT_INTERRUPTED)
