"""Create, check and lock ``OUTPUT_DIR``."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from d2_maskrcnn.distributed import run_together
from d2_maskrcnn.engine.launch import launcher_pid
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.checkpoint_files import existing_training
from detectron2.utils import comm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "training.lock"

logger = logging.getLogger(__name__)

# Locks of this process: resolved folder -> (open lock file, number of `lock_output_dir` calls).
_locks: dict[str, tuple[IO[str], int]] = {}


def check_output_dir(folder: str) -> None:
    """Create ``OUTPUT_DIR``.

    Raises:
        UserError: it cannot be created or is not writable.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {path} cannot be created ({error.strerror}); choose another folder.") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"OUTPUT_DIR {path} is not writable; change its permissions or choose another folder.")


def refuse_overwriting(folder: str) -> None:
    """Refuse a new training in a folder that contains one.

    Raises:
        UserError: it does; the message names a checkpoint.
    """
    if existing := existing_training(folder):
        raise UserError(
            f"OUTPUT_DIR {folder} already contains a training ({existing}): resume it, or choose another OUTPUT_DIR."
        )


def lock_output_dir(folder: str) -> None:
    """Lock ``OUTPUT_DIR`` for this job until :func:`unlock_output_dir` or its end, however it ends.

    The main process takes a POSIX record lock, which the kernel releases when the process dies and which workers do not
    inherit. The file names the process that started the job, which is the one to stop. Every process must call this;
    calls can be nested. Without such locks (Windows, some network file systems) nothing is locked.

    Raises:
        UserError: another job has locked it.
    """
    run_together(lambda: _lock(folder) if comm.is_main_process() else None)


def _lock(folder: str) -> None:
    key = os.path.realpath(folder)
    if key in _locks:
        file, depth = _locks[key]
        _locks[key] = (file, depth + 1)
        return
    check_output_dir(folder)
    path = Path(folder) / LOCK_FILE
    file = _open_locked(path)
    if owner := _describe_owner(file.read()):
        logger.warning("%s was left by %s, which has ended: taking it over", path, owner)
    file.truncate(0)
    file.write(json.dumps({"pid": launcher_pid(), "host": socket.gethostname()}))
    file.flush()
    _locks[key] = (file, 1)


def _open_locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+")
        file.seek(0)
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            owner = _describe_owner(file.read()) or "another process"
            file.close()
            raise UserError(
                f"OUTPUT_DIR {path.parent} is in use by {owner}: stop it or wait for it, or choose another OUTPUT_DIR."
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): do not start a second training there", path, error.strerror)
        if _is_same_file(file, path):
            return file
        file.close()  # removed by the previous owner between opening and locking


def _is_same_file(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _describe_owner(text: str) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        owner = json.loads(text)
        return f"process {int(owner['pid'])} on {str(owner['host'])[:80]}"
    return ""


def unlock_output_dir(folder: str) -> None:
    """Undo one call of :func:`lock_output_dir`; the last one removes the lock."""
    if not comm.is_main_process():
        return
    key = os.path.realpath(folder)
    file, depth = _locks.pop(key)
    if depth > 1:
        _locks[key] = (file, depth - 1)
        return
    Path(file.name).unlink(missing_ok=True)  # before the lock is released, so that no newer owner's file is removed
    file.close()


@contextlib.contextmanager
def locked_output_dir(folder: str) -> Iterator[None]:
    """Lock ``OUTPUT_DIR`` inside the ``with`` block; see :func:`lock_output_dir`."""
    lock_output_dir(folder)
    try:
        yield
    finally:
        unlock_output_dir(folder)
