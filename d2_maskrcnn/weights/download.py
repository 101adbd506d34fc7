"""Weight files by address: ``detectron2://`` and ``https://`` through iopath and its cache."""

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

from iopath.common.file_io import get_cache_dir

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import check_whole

ZOO_PREFIX = "detectron2://"
ZOO_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"
TIMEOUT_SECONDS = 30.0  # without an answer; a slow download that goes on is not stopped


def is_remote(path: str) -> bool:
    """Whether ``path`` is an address (``scheme://...``) and not a file of this machine."""
    return "://" in path


def download_address(path: str) -> str:
    """The address that is asked for ``path``: that of the model zoo for ``detectron2://``, else ``path`` itself."""
    return ZOO_ADDRESS + path.removeprefix(ZOO_PREFIX) if path.startswith(ZOO_PREFIX) else path


def cached_path(path: str) -> Path:
    """Where iopath looks for ``path`` before it downloads: under ``$FVCORE_CACHE`` (``~/.torch/iopath_cache``)."""
    address = download_address(path)
    folder = os.path.dirname(urlparse(address).path.lstrip("/"))
    return Path(get_cache_dir()) / folder / address.split("/")[-1]


def fetch_weights(path: str) -> str:
    """The local file for ``path``, which is downloaded if it is an address that is not in the cache yet.

    A download is kept only if it is a whole weight file; a part of one, or the web page of a login, is removed again.

    Args:
        path: a local file (returned as it is), or an address that ``PathManager`` knows.

    Raises:
        UserError: the download cannot be made, or did not bring a weight file; the message says where to put the file
            by hand.
    """
    if not is_remote(path):
        return path
    from detectron2.utils.file_io import PathManager

    cached = cached_path(path)
    was_there = cached.is_file()
    try:
        with _socket_timeout(TIMEOUT_SECONDS):
            local = PathManager.get_local_path(path)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _cannot_download(path, cached, _reason(error)) from error
    if not os.path.isfile(local):
        raise UserError(
            f"No way to download {path}: name a local file, or an http://, https:// or detectron2:// address."
        )
    if not was_there:
        _check_download(path, Path(local), cached)
    return local


def _check_download(path: str, local: Path, cached: Path) -> None:
    try:
        check_whole(local)
    except UserError as error:
        local.unlink(missing_ok=True)  # another process of this machine may have been first
        raise _cannot_download(path, cached, f"what came was removed again: {error}") from error


def _cannot_download(path: str, cached: Path, reason: str) -> UserError:
    address = download_address(path)
    origin = f"{path} ({address})" if address != path else path
    return UserError(
        f"Cannot download {origin}: {reason.rstrip('.')}. Fetch that address by other means and put the file at "
        f"{cached}, or set MODEL.WEIGHTS to a local file."
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, URLError) and not isinstance(error, http.client.HTTPException):
        inner = getattr(error, "reason", error)
        code = getattr(error, "code", None)
        return f"HTTP {code} {inner}" if code else str(getattr(inner, "strerror", None) or inner)
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """iopath's download has no time limit of its own, and a firewall that drops packets would hold it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
