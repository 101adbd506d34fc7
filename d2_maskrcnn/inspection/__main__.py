"""Run ``python -m d2_maskrcnn.inspection``."""

import sys

from d2_maskrcnn.cli.inspect import main
from d2_maskrcnn.errors import run_main

sys.exit(run_main(main))
