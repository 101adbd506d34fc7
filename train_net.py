"""Train or evaluate the Mask R-CNN of a config; see ``python train_net.py --help``."""

import sys

# Importing the plugin chooses the engine, so it comes before anything of detectron2.
import d2_maskrcnn  # noqa: F401
from d2_maskrcnn.cli.train import evaluate, main, run
from d2_maskrcnn.errors import run_main

__all__ = ["evaluate", "main", "run"]

if __name__ == "__main__":
    sys.exit(run_main(run))
