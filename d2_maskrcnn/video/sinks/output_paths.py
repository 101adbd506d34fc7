"""Check output paths before a long run starts."""

import os
from pathlib import Path

from d2_maskrcnn.errors import UserError


def check_target(path: Path, overwrite: bool, label: str) -> Path:
    """Check that a file can be written, and create its folder.

    Args:
        path: the file.
        overwrite: whether an existing file may be replaced.
        label: what the user calls the file, for messages.

    Raises:
        UserError: it exists and ``overwrite`` is false, it is a folder, or it is not writable.
    """
    if path.is_dir():
        raise UserError(f"{label} {path} is a folder; expected a file name.")
    if path.exists() and not overwrite:
        raise UserError(f"{label} {path} already exists: overwrite it explicitly, or choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{label} {path}: its folder cannot be created ({error.strerror}).") from error
    writable = os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK)
    if not writable:
        raise UserError(f"{label} {path} is not writable: change the permissions or choose another place.")
    return path
