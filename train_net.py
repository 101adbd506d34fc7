"""Train or evaluate the Mask R-CNN of a config: ``d2-maskrcnn train`` under the name of Detectron2's program."""

import sys

from d2_maskrcnn.cli.main import run_module

if __name__ == "__main__":
    sys.exit(run_module("d2_maskrcnn.cli.train", program="train_net.py"))
