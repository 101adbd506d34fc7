"""Train or evaluate the Mask R-CNN of a config; see ``python train_net.py --help``."""

import os
import signal
import sys

# Until the imports are done, Ctrl-C ends the program at once: Python's own handler would raise KeyboardInterrupt inside
# of them, with a long traceback. Spawned workers import this file too, and leave the message to their launcher.
if __name__ in ("__main__", "__mp_main__") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    MESSAGE = b"interrupted\n" if __name__ == "__main__" else b""
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, MESSAGE), os._exit(130)))

# Importing the plugin chooses the engine, so it comes before anything of detectron2.
import d2_maskrcnn  # noqa: F401
from d2_maskrcnn.cli.train import evaluate, main, run
from d2_maskrcnn.errors import run_main

__all__ = ["evaluate", "main", "run"]

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_main(run))
