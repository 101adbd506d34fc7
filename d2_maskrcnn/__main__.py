"""Run ``d2-maskrcnn``, also as ``python -m d2_maskrcnn``."""

import sys

from d2_maskrcnn.cli.interrupts import end_on_interrupt

end_on_interrupt()  # before the imports of the next line

from d2_maskrcnn.cli.main import main  # noqa: E402

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
