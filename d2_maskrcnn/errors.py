"""Report bad input in one line, and turn the end of a program into an exit status."""

import contextlib
import difflib
import errno
import importlib
import logging
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_OUTPUT_CLOSED = 141  # what shells report for a program that SIGPIPE ended
EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

# Spaces and joiners of scripts and emoji, which str.isprintable rejects.
_SHOWN = "\u00a0\u3000\u200c\u200d"

_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some of your quota on the disk",
    errno.EROFS: "the disk is read-only: write to another folder",
    errno.EACCES: "change the permissions of the file or folder",
    errno.EPERM: "change the permissions of the file or folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "name the file itself",
    errno.EIO: "the disk has a fault: check it",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer workers (DATALOADER.NUM_WORKERS)",
}

# What is wrong with a path that the user gave, found where it was first used.
_BAD_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)

_FORMULA_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

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
    return printable(" ".join(str(error).split()))


def printable(text: str) -> str:
    """Escape the characters of a text that change or break the line they are shown in.

    >>> printable("a\\nb\\x1b[31m")
    'a\\\\nb\\\\x1b[31m'
    """
    return "".join(char if char.isprintable() or char in _SHOWN else ascii(char)[1:-1] for char in text)


def escape_formula(text: str) -> str:
    """Keep spreadsheets from evaluating a CSV cell, see https://owasp.org/www-community/attacks/CSV_Injection.

    Control characters are escaped as in :func:`printable`. The full-width forms of the signs count in Japanese locales.

    >>> escape_formula("=1+1")
    "'=1+1"
    """
    shown = printable(text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA_SIGNS) else shown


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


def check_number(name: str, value: object) -> None:
    """Check that an argument is None or a number of Python, NumPy or PyTorch.

    Raises:
        UserError: it is not.
    """
    if value is not None and (isinstance(value, (str, bytes)) or not hasattr(value, "__float__")):
        raise UserError(f"{name} {value!r:.100}: expected a number.")


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


def output_is_closed() -> bool:
    """Return whether the reader of the standard output has gone, as in ``train_net.py | head``."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll (Windows), no stdout, or not a file (notebooks)
        return False


@contextlib.contextmanager
def doing(action: str) -> Iterator[None]:
    """Name what the block does, with its file, in the report of an unexpected exception (see :func:`run_main`).

    Args:
        action: such as ``reading a.json``; of nested blocks the innermost is reported.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not hasattr(error, "d2_maskrcnn_action"):
            with contextlib.suppress(AttributeError):  # an exception with slots
                error.d2_maskrcnn_action = action  # type: ignore[attr-defined]
        raise


@contextlib.contextmanager
def opencv_required() -> Iterator[None]:
    """Turn a failed import of OpenCV in the ``with`` block into advice.

    Raises:
        UserError: OpenCV isn't installed, or a system library that ``opencv-python`` needs is missing.
    """
    try:
        yield
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
            raise UserError("OpenCV is not installed: pip install opencv-python-headless") from error
        if not any(name in str(error) for name in ("libGL", "libgthread", "libglib")):
            raise
        raise UserError(
            f"OpenCV cannot be imported ({error}): pip uninstall opencv-python, then pip install --force-reinstall "
            "opencv-python-headless, which needs no display libraries; or apt-get install libgl1 libglib2.0-0"
        ) from error


def import_extra(module: str, extra: str) -> Any:
    """Import a package that belongs to an extra of this package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'The package {module} is not installed: pip install "d2_maskrcnn[{extra}]" ({error}).'
        ) from error


def run_main(main: Callable[[], object]) -> int:
    """Run a program and return its exit status.

    Args:
        main: the program. A :class:`UserError` that it raises is printed on stderr as one line. For any other exception
            the line says what was being done, and names the file that contains the traceback; with
            ``D2_MASKRCNN_DEBUG=1`` the exception is passed on.

    Returns:
        0, 1 for an unexpected exception, 2 for bad input, 130 after Ctrl-C, or 141 if the reader of stdout has gone.
        ``SystemExit`` is passed on.
    """
    logging.raiseExceptions = False  # a closed terminal or pipe is not worth a traceback for every log line
    try:
        with opencv_required():
            main()
    except UserError as error:
        _print(f"error: {one_line(error)}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        logger.debug("interrupted", exc_info=True)
        _print("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # the last resort: whatever it is, the user gets one line
        if isinstance(error, BrokenPipeError) and output_is_closed():
            return EXIT_OUTPUT_CLOSED
        if os.environ.get("D2_MASKRCNN_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.errno in _BAD_PATHS and isinstance(error.filename, str | bytes):
            _print(f"error: {one_line(os.fsdecode(error.filename))}: {error.strerror}; {_remedy(error)}")
            return EXIT_BAD_INPUT
        if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib before Python 3.13
            _print(f"error: {one_line(error)}; {_REMEDIES[errno.ELOOP]}")
            return EXIT_BAD_INPUT
        _print(f"error: {_describe_fault(error)}")
        return EXIT_FAULT
    finally:
        _flush_output()
    return 0


def _flush_output() -> None:
    """Flush stdout, as the interpreter does at its end, but without complaint if its reader has gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # no stdout, or it is closed
        return


def _print(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal has gone
        print(message, file=sys.stderr, flush=True)


def _remedy(error: Exception) -> str:
    """Say what the user can do about an unexpected exception; faults of the machine are not this program's."""
    if "OutOfMemory" in type(error).__name__ or isinstance(error, MemoryError):
        return "use smaller images (INPUT.MIN_SIZE_*) or fewer at a time (SOLVER.IMS_PER_BATCH)"
    number = error.errno if isinstance(error, OSError) else None
    return _REMEDIES.get(number, "this is a fault of d2_maskrcnn, please report it")


def _describe_fault(error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "d2_maskrcnn" in frame.filename]
    place = f"{os.path.basename(frames[-1].filename)}, {frames[-1].name}" if frames else "the program"
    action = getattr(error, "d2_maskrcnn_action", f"running {place}")
    remedy = _remedy(error)
    text = "".join(traceback.format_exception(error))
    logger.debug("unexpected exception", exc_info=error)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="d2_maskrcnn_", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            file.write(text)
    except OSError:
        return one_line(
            f"{action}: {type(error).__name__}: {error}; {remedy} (D2_MASKRCNN_DEBUG=1 shows the traceback)"
        )
    return one_line(f"{action}: {type(error).__name__}: {error!s:.300}; {remedy}. The traceback is in {file.name}")
