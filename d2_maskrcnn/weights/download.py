"""Download weight files by address into a cache folder."""

import hashlib
import http.client
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from d2_maskrcnn.errors import UserError, one_line
from d2_maskrcnn.weights.atomic import remove_stale_temporaries, replacing
from d2_maskrcnn.weights.readers import read_weights

ZOO_PREFIX = "detectron2://"
ZOO_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"
TIMEOUT_SECONDS = 30.0  # without any data; a slow download is not stopped
WEB_ERRORS = (OSError, http.client.HTTPException, ValueError)  # of a download; ValueError: a malformed address
_ADDRESS_SIGNS = "%/:=&?~#+!$,;'@()*[]"  # not quoted in addresses

logger = logging.getLogger(__name__)


def is_remote(path: str) -> bool:
    """Return whether ``path`` is an address (``scheme://...``) rather than a local file."""
    return "://" in path


def cached_path(path: str) -> Path:
    """Return the local file for an address, under ``$FVCORE_CACHE`` (default: ``~/.torch/iopath_cache``).

    It is ``<scheme>/<host>/<path>``, with the hash of a query before the file name, so that different addresses never
    share a file.

    Raises:
        UserError: not an ``http://``, ``https://`` or ``detectron2://`` address of a file, or one with ``..`` in it.
    """
    try:
        if not path.isprintable():
            raise ValueError("it contains control characters")  # which `urlsplit` leaves out
        parts = urllib.parse.urlsplit(_address(path))
        host = (parts.hostname or "") + (f"_{parts.port}" if parts.port else "")
    except ValueError as error:  # a malformed host or port
        raise UserError(f"MODEL.WEIGHTS {path} is not a valid address ({error}).") from error
    *folders, name = parts.path.removeprefix("/").split("/")
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"Cannot download {path}: give a local file, or an http://, https:// or detectron2:// address of a file."
        )
    names = [parts.scheme, host, *folders, name]
    if any(each in ("", ".", "..") or not each.isprintable() or set(each) & set('\\/:*?"<>|') for each in names):
        raise UserError(f"Cannot download {path}: expected the plain address of a file, without '..' or empty parts.")
    if parts.query:
        names[-1] = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}-{name}"
    cache = Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()
    return cache.joinpath(*names)


def fetch_weights(path: str) -> str:
    """Return the local file for ``path``, downloading it if it is an address that is not in the cache yet.

    A download replaces the cached file only after it has been read as a weight file.

    Args:
        path: a local file (returned with ``~`` expanded), or an address, see :func:`cached_path`.

    Raises:
        UserError: the download failed or is not a weight file; the message says where to put the file by hand.
    """
    if not is_remote(path):
        return os.path.expanduser(path)
    cached = cached_path(path)
    try:
        if not cached.is_file():
            _download(_address(path), cached)
    except UserError as error:
        raise _cannot_download(path, cached, f"the response was discarded: {error}") from error
    except WEB_ERRORS as error:
        raise _cannot_download(path, cached, download_reason(error)) from error
    return str(cached)


def _address(path: str) -> str:
    return ZOO_ADDRESS + path.removeprefix(ZOO_PREFIX) if path.startswith(ZOO_PREFIX) else path


def _download(address: str, cached: Path) -> None:
    logger.info("Downloading %s to %s", address, cached)
    cached.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(cached.parent)
    with replacing(cached) as file:
        _copy_response(address, file)
        file.flush()
        read_weights(file.name, copy_states=())


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to other http and https addresses only; urllib would follow those to ftp as well."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.URLError(f"it is redirected to {newurl!r:.200}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_address(address: str, timeout: float) -> Any:
    """Open an ``http://`` or ``https://`` address, as :func:`urllib.request.urlopen` does.

    Spaces and letters beyond ASCII are quoted, as browsers do. Redirects to addresses of other kinds are refused.

    Args:
        address: of a file.
        timeout: seconds without data after which the download fails.

    Raises:
        OSError, http.client.HTTPException, ValueError: the download fails; see :func:`download_reason`.
    """
    quoted = urllib.parse.quote(address.strip(), safe=_ADDRESS_SIGNS)
    return urllib.request.build_opener(_WebRedirects).open(quoted, timeout=timeout)


def _copy_response(address: str, file: BinaryIO) -> None:
    with open_address(address, TIMEOUT_SECONDS) as response:
        expected = response.headers.get("Content-Length")
        shutil.copyfileobj(response, file, 2**20)
    if expected is not None and file.tell() != int(expected):
        raise http.client.HTTPException(f"the connection ended after {file.tell()} of {expected} bytes")


def _cannot_download(path: str, cached: Path, reason: str) -> UserError:
    address = _address(path)
    origin = f"{path} ({address})" if address != path else path
    return UserError(
        f"Cannot download {origin}: {one_line(reason).rstrip('.')}. Download it by other means and put the file at "
        f"{cached}, or set MODEL.WEIGHTS to a local file."
    )


def download_reason(error: BaseException) -> str:
    """Say in a few words why a download failed with one of ``WEB_ERRORS``."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}".splitlines()[0]  # urllib adds two lines about a loop
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection ended before the file"
    if isinstance(inner, http.client.BadStatusLine) and not isinstance(inner, OSError):
        return "the server does not answer in HTTP"
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)
