"""Detect objects in images, videos, webcams or streams, with the options of Detectron2's demo."""

import sys

from d2_maskrcnn.cli.main import run_module

if __name__ == "__main__":
    sys.exit(run_module("d2_maskrcnn.cli.demo", program="demo.py"))
