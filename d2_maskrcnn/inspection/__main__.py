"""Run ``d2-maskrcnn inspect`` under its earlier name, ``python -m d2_maskrcnn.inspection``."""

import runpy
import sys

sys.argv.insert(1, "inspect")
runpy.run_module("d2_maskrcnn", run_name="__main__", alter_sys=True)  # by name: no package imports the command line
