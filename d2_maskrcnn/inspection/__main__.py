"""Run ``python -m d2_maskrcnn.inspection``, which is ``d2-maskrcnn inspect``."""

import sys

from d2_maskrcnn.cli.main import run_module

sys.exit(run_module("d2_maskrcnn.cli.inspect", program="python -m d2_maskrcnn.inspection"))
