"""Run ``python -m d2_maskrcnn``."""

import sys

from d2_maskrcnn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
