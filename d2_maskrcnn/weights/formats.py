"""Detect the formats of weight files, and check that a file is complete, without loading it.

The format is decided by the first bytes of a file. Its name is used in messages only.
"""

import os
import stat
import sys
import zipfile
import zlib
from pathlib import Path

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.safe_pickle import check_pickle

EXPECTED = "a .pth file of torch.save, a .pkl file of the model zoo, or .safetensors"
# How torch.save began its files before they were zip archives: a pickled magic number.
_TORCH_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_NOT_WEIGHTS = (
    (b"<", "a web page or XML (a download link that led to a page?)"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
    (b"{", "JSON text"),
    (b"\x1f\x8b", "a gzip archive (unpack it)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file (Keras?)"),
)
_ENCRYPTED = 0x1  # flag bit of a zip entry
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22  # the last record of a zip archive without a comment


def file_kind(path: str | os.PathLike[str]) -> str:
    """Return the format of a file: ``"torch_zip"``, ``"torch_legacy"``, ``"pickle"`` or ``"safetensors"``.

    Raises:
        UserError: the file is missing, empty, not a regular file, of another format, or of two formats at once.
    """
    path = Path(path)
    head = _read_head(path)
    kind = _kind_of(head)
    if kind is None and head and path.suffix in (".pkl", ".pickle") and not _known_format(head):
        kind = "pickle"  # an unusual beginning: its reader reports the problem
    if kind is None:
        raise UserError(f"{path} is not a weight file: it is {_describe(head)}; expected {EXPECTED}.")
    if kind != "torch_zip" and _is_zip(path):
        raise UserError(f"{path} is refused: it is a zip archive as well as a {kind} file; expected {EXPECTED}.")
    return kind


def _read_head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder, not a weight file: name the file in it ({EXPECTED}).")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path} is not a regular file (a pipe, socket or device); expected {EXPECTED}.")
        with path.open("rb") as file:
            return file.read(512)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"Weight file {path}: file not found; check MODEL.WEIGHTS (expected {EXPECTED}).{_nearby(path)}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Weight file {path} cannot be read: {reason}.") from error


def _kind_of(head: bytes) -> str | None:
    if head.startswith(b"PK\x03\x04"):
        return "torch_zip"
    if head.startswith(b"\x80") and _TORCH_LEGACY in head[:32]:
        return "torch_legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**40:
        return "safetensors"
    # Protocol 2 and later begin with their number; protocols 0 and 1 of Python 2 with the dict.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head.startswith((b"(dp", b"(d", b"}q", b"}(")):
        return "pickle"
    return None


def _describe(head: bytes) -> str:
    if not head:
        return "empty"
    return _known_format(head) or f"of an unknown format (it begins with {head[:12]!r})"


def _known_format(head: bytes) -> str | None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((name for magic, name in _NOT_WEIGHTS if text.startswith(magic)), None)


def _is_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return bool(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _nearby(path: Path) -> str:
    """List the weight files in the folder of a missing one."""
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".pth", ".pt", ".pkl", ".safetensors"))
    return f" That folder contains {', '.join(names[:5])}." if names else ""


def check_whole(path: str | os.PathLike[str]) -> None:
    """Check that a weight file is complete, without loading it: format, checksums of a zip archive, end of a pickle.

    Raises:
        UserError: it is not.
    """
    kind = file_kind(path)
    if kind == "torch_zip":
        check_zip(path)
    elif kind == "pickle":
        check_pickle(path)


def damaged(path: str | os.PathLike[str], reason: object) -> UserError:
    """Return the error for a truncated or damaged file."""
    text = " ".join(str(reason).split())[:160]
    return UserError(
        f"{path} is truncated or damaged ({os.stat(path).st_size} bytes; {text}): copy or download it again."
    )


def check_zip(path: str | os.PathLike[str]) -> dict[str, int]:
    """Check that a zip archive is exactly what ``torch.save`` writes: uncompressed records with valid checksums.

    Memory mapping reads the records in place, so a compressed one would be taken for weights.

    Returns:
        Size in bytes of each record, by its name without the archive's folder (``"data/0"``).

    Raises:
        UserError: the archive is damaged, contains other files, or has compressed, repeated or hidden records.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries, comment = archive.infolist(), archive.comment
            _check_entries(path, entries, comment)
            _check_end_and_byte_order(path, archive)
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise damaged(path, error) from error
    if bad is not None:
        raise damaged(path, f"wrong checksum of {bad}")
    return {entry.filename.partition("/")[2]: entry.file_size for entry in entries}


def _check_entries(path: str | os.PathLike[str], entries: list[zipfile.ZipInfo], comment: bytes) -> None:
    folders = {entry.filename.partition("/")[0] for entry in entries}
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise UserError(f"{path} is not a weight file: it is a TorchScript program; expected {EXPECTED}.")
    if "data.pkl" not in names:
        raise UserError(f"{path} is not a weight file: it is a zip archive of other files; expected {EXPECTED}.")
    wrong = next(
        (e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.flag_bits & _ENCRYPTED), None
    )
    if wrong is not None:
        raise UserError(f"{path} is refused: its record {wrong} is compressed or encrypted; save it with torch.save.")
    total = sum(entry.file_size for entry in entries)
    if len(folders) > 1 or len(set(names)) < len(names) or comment or total > os.stat(path).st_size:
        raise UserError(
            f"{path} is refused: its records are repeated, overlap or are followed by a comment, unlike those that "
            "torch.save writes; save it with torch.save."
        )
    if min(entry.header_offset for entry in entries) > 0:
        raise UserError(f"{path} is refused: something precedes the zip archive in it; save it with torch.save.")


def _check_end_and_byte_order(path: str | os.PathLike[str], archive: zipfile.ZipFile) -> None:
    """Refuse an archive that is followed by more bytes, or whose numbers are in another byte order than this machine's.

    The record ``byteorder`` decides whether every number is reversed, and nothing shows that it is wrong.
    """
    with open(path, "rb") as file:
        file.seek(-_ZIP_END_SIZE, os.SEEK_END)
        if not file.read().startswith(_ZIP_END):
            raise UserError(f"{path} is refused: something follows the zip archive in it; save it with torch.save.")
    name = next((name for name in archive.namelist() if name.partition("/")[2] == "byteorder"), None)
    order = archive.read(name).decode("latin1") if name is not None else sys.byteorder
    if order != sys.byteorder:
        raise UserError(
            f"{path} is refused: its byte order is {order!r:.40}, that of this machine is {sys.byteorder!r}; save it "
            "on a machine with the same byte order."
        )
