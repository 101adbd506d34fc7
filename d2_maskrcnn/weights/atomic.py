"""Replace files atomically: write a temporary file, flush it to the disk, rename it."""

import contextlib
import copy
import errno
import io
import logging
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from d2_maskrcnn.errors import UserError

logger = logging.getLogger(__name__)
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # .model_final.pth.<thread id>.<process id>.tmp
_KEPT = 50  # characters of a name in that of its temporary file


class _Recorder(io.BufferedIOBase):
    """Pass writes on and record the first error: ``torch.save`` reports a full disk as RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        if not self.closed and not self._file.closed:
            self._file.flush()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut (POSIX; elsewhere folders cannot be opened)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces ``path`` if the block succeeds and is removed otherwise.

    Args:
        path: the file.
        sync: whether it must survive a power cut, which takes some milliseconds.
    """
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # a name that no file can have is refused before anything is written
    # Threads may write the same file, and a name may be as long as the file system allows.
    temporary = path.parent / f".{path.name[:_KEPT]}.{threading.get_ident()}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # missing after the rename


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error) or type(error).__name__
    try:
        free = f"{shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free there"
    except OSError:
        free = f"the folder {path.parent} cannot be read"
    kept = "the older file of that name is unchanged" if os.path.lexists(path) else "no partial file is left"
    if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
        return UserError(f"Cannot write {path}: it is a folder; name a file.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"Cannot write {path}: {reason}; {kept}. Change the permissions or choose another folder.")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return UserError(f"Cannot write {path}: {reason}; {kept}. Choose another name or folder.")
    return UserError(
        f"Cannot write {path}: {reason} ({free}); {kept}. Free some space, raise the quota or choose another folder."
    )


def atomic_torch_save(obj: Any, path: str | os.PathLike[str]) -> None:
    """Call ``torch.save`` on a temporary file that replaces ``path`` when it is complete.

    Args:
        obj: nested dicts, lists and tuples of tensors, numbers and text, which tensors-only loading can read.
        path: a local file in an existing folder.

    Raises:
        UserError: the file cannot be written (disk full, no permission, no such folder).
        TypeError: ``obj`` contains something else, which the message names.
    """
    path = Path(path)
    recorder: _Recorder | None = None
    try:
        with replacing(path) as file:
            recorder = _Recorder(file)
            torch.save(obj, cast(Any, recorder))
            file.flush()
            _check_readable(Path(file.name), path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except RuntimeError as error:
        if recorder is None or recorder.error is None:
            raise
        raise _cannot_write(path, recorder.error) from error


def plain_values(value: Any) -> Any:
    """Convert NumPy scalars and arrays to Python's and torch's, which tensors-only loading accepts."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, OrderedDict):  # of a module: copy() keeps the attribute ``_metadata``
        plain = copy.copy(value)
        plain.update((key, plain_values(item)) for key, item in value.items())
        return plain
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain_values(item) for item in value)
    return value


def _check_readable(temporary: Path, path: Path) -> None:
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(str(temporary))
    if unsafe:
        raise TypeError(
            f"{path} was not written: it would contain objects that cannot be loaded safely "
            f"({', '.join(sorted(unsafe))}); return tensors, numbers, text and plain containers from state_dict()."
        )


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) so that a reader sees either the older or the new file, never a part of it.

    Raises:
        UserError: the file cannot be written.
    """
    atomic_write_bytes(path, text.encode())


def write_output(path: Path, content: str | bytes, sync: bool = True) -> None:
    """Write a file that a user named, as :func:`atomic_write_text` does; its folder is created if it is missing.

    Args:
        path: the file.
        content: text is written in UTF-8.
        sync: see :func:`replacing`.

    Raises:
        UserError: the file cannot be written.
    """
    if "\0" in str(path):
        raise UserError(f"{path}: cannot be written (its name contains a NUL character); name another file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file or folder") from error
    atomic_write_bytes(path, content if isinstance(content, bytes) else content.encode(), sync)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, sync: bool = True) -> None:
    """Write ``data`` as :func:`atomic_write_text` does.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        with replacing(path, sync) as file:
            file.write(data)
    except OSError as error:
        raise _cannot_write(path, error) from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder for checkpoints if it is missing, and remove what killed processes left in it.

    Raises:
        UserError: it cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder} cannot be created: {error.strerror}; choose another.") from error
    for name in remove_stale_temporaries(folder):
        logger.info("Removed %s, left in %s by a killed process", name, folder)
    return folder


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the temporary files that killed processes of this machine left in ``folder``.

    Returns:
        The names of the removed files.
    """
    removed = []
    for path in sorted(Path(folder).glob(".*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match.group(1))):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process
        return True
    return True
