"""Check output paths before a long run starts."""

import os
from collections.abc import Iterable
from pathlib import Path

from d2_maskrcnn.errors import UserError

Inputs = dict[tuple[int, int], str]


def identify(names: Iterable[str]) -> Inputs:
    """Return those names that are existing files, by device and inode, so that links are recognized."""
    return {_identity(name): name for name in names if os.path.isfile(name)}


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def check_target(path: Path, overwrite: bool, label: str, inputs: Inputs | None = None) -> Path:
    """Check that a file can be written, and create its folder.

    Args:
        path: the file.
        overwrite: whether an existing file may be replaced.
        label: what the user calls the file, for messages.
        inputs: files that are never replaced, from :func:`identify`.

    Raises:
        UserError: it is one of ``inputs``, it exists and ``overwrite`` is false, it is a folder, or it is not writable.
    """
    if path.is_dir():
        raise UserError(f"{label} {path} is a folder; expected a file name.")
    if inputs and path.exists() and (same := inputs.get(_identity(path))):
        raise UserError(f"{label} {path} would replace the input {same}: choose another file or folder.")
    if path.exists() and not overwrite:
        raise UserError(f"{label} {path} already exists: choose another name, or set overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{label} {path}: its folder cannot be created ({error.strerror}).") from error
    writable = os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK)
    if not writable:
        raise UserError(f"{label} {path} is not writable: change the permissions or choose another place.")
    return path
