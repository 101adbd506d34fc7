"""Report bad input in one line, and turn the end of a program into an exit status."""

import contextlib
import difflib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

logger = logging.getLogger(__name__)


class UserError(ValueError):
    """Raised for bad input: a file, a config key or an argument that the user can fix.

    The message says what is wrong, where, what was expected and how to fix it. :func:`run_main` prints it as one line,
    without a traceback.
    """


def one_line(error: object) -> str:
    """Return ``str(error)`` on one line: whitespace runs become single spaces, other control characters are escaped.

    >>> one_line("a.json:\\n  not   JSON\\x1b")
    'a.json: not JSON\\\\x1b'
    """
    text = " ".join(str(error).split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the known name most similar to ``name``, ignoring case; "" if none is similar enough.

    Args:
        name: what was given.
        known: the valid names.
        cutoff: least similarity of the suggestion, 0 to 1; at 0 the most similar name is always suggested.

    >>> did_you_mean("SOLVER.BASE_LRR", ["SOLVER.BASE_LR", "SOLVER.GAMMA"])
    ' Did you mean SOLVER.BASE_LR?'
    """
    by_lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return f" Did you mean {by_lower[nearest[0]]}?" if nearest else ""


@contextlib.contextmanager
def warn_on_failure(action: str) -> Iterator[None]:
    """Turn an exception inside the block into one warning: for figures, images and logs, which must not end a run.

    Args:
        action: what the block does, such as ``drawing a.png``.
    """
    try:
        yield
    except Exception as error:  # whatever fails in an optional output, the run has results that must not be lost
        logger.warning("%s failed (%s: %s): left out", action, type(error).__name__, one_line(error))
        logger.debug("%s failed", action, exc_info=True)


def run_main(main: Callable[[], object]) -> int:
    """Run a program and return its exit status.

    Args:
        main: the program. A :class:`UserError` that it raises is printed on stderr as one line; any other exception is
            a fault of this package and keeps its traceback.

    Returns:
        0, 2 for bad input, or 130 after Ctrl-C. ``SystemExit`` is passed on.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        logger.debug("interrupted", exc_info=True)
        print("interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    return 0
