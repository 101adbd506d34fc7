"""``python -m d2_maskrcnn.inspection``."""

import sys

from d2_maskrcnn.inspection.cli import console

sys.exit(console())
