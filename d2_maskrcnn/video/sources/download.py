"""Download a video whose web server cannot send parts of a file."""

import logging
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.download import WEB_ERRORS, download_reason, open_address

logger = logging.getLogger(__name__)


class DownloadedFile:
    """A temporary copy of a file on a web server, deleted together with this object.

    Args:
        address: ``http://`` or ``https://`` URL.
        timeout: seconds without data after which the download fails.

    Attributes:
        path: path of the copy.

    Raises:
        UserError: the download failed.
    """

    def __init__(self, address: str, timeout: float) -> None:
        logger.warning("%s: the server cannot send parts of the file; downloading all of it first.", address)
        self._folder = tempfile.TemporaryDirectory(prefix="d2_maskrcnn-")
        self.path = Path(self._folder.name) / f"video{PurePosixPath(urlsplit(address).path).suffix}"
        try:
            with open_address(address, timeout) as response, self.path.open("wb") as file:
                shutil.copyfileobj(response, file, 1 << 20)
        except WEB_ERRORS as error:
            raise UserError(f"Video {address}: download failed ({download_reason(error)}).") from error
