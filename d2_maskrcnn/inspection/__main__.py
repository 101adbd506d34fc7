"""``python -m d2_maskrcnn.inspection``."""

import sys

from d2_maskrcnn.cli.inspect import console

sys.exit(console())
