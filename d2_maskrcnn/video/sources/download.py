"""Video files on web servers that only send whole files, from the beginning on."""

import logging
import shutil
import tempfile
import urllib.request
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from d2_maskrcnn.errors import UserError

logger = logging.getLogger(__name__)


class FetchedFile:
    """A copy of a file from a server, which goes away with this object.

    Args:
        address: ``http://`` or ``https://``.
        timeout: seconds without data after which the server is given up.

    Attributes:
        path: of the copy.

    Raises:
        UserError: it cannot be fetched.
    """

    def __init__(self, address: str, timeout: float) -> None:
        logger.warning("The server of %s cannot send parts of it: the whole file is fetched first.", address)
        self._folder = tempfile.TemporaryDirectory(prefix="d2_maskrcnn-")
        self.path = Path(self._folder.name) / f"video{PurePosixPath(urlsplit(address).path).suffix}"
        try:
            with urllib.request.urlopen(address, timeout=timeout) as answer, self.path.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
        except (OSError, ValueError) as error:
            raise UserError(f"Video {address} cannot be fetched ({error}).") from error
