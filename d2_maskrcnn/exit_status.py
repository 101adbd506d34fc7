"""How the command-line programs of this project end: one line for a person, and an exit status for a script."""

import logging
import sys
from collections.abc import Callable

from d2_maskrcnn.errors import UserError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def run_main(main: Callable[[], object]) -> int:
    """Runs a program and turns its end into an exit status.

    Args:
        main: the program. A :class:`UserError` that it raises is printed as one line on stderr, without a traceback;
        any other
            exception is a fault of ours and keeps its traceback.

    Returns:
        0, 2 for bad input, or 130 after Ctrl-C; what ``SystemExit`` carries where ``main`` raised that.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        logging.getLogger(__name__).debug("interrupted", exc_info=True)
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0


def one_line(error: BaseException) -> str:
    """The message of ``error`` with line breaks and runs of blanks made single blanks."""
    return " ".join(str(error).split())
