"""Files by path or address. All files of the engine are read and written through :data:`PathManager`."""

from typing import Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["Detectron2Handler", "PathHandler", "PathManager"]

# A path manager of its own, so that handlers registered here do not affect other users of iopath. HTTP downloads are
# cached under $FVCORE_CACHE (default: ~/.torch/iopath_cache).
PathManager = PathManagerBase()


class Detectron2Handler(PathHandler):
    """Map ``detectron2://path`` to the address of that file in Detectron2's model zoo."""

    PREFIX = "detectron2://"
    ZOO_ADDRESS = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _address(self, path: str) -> str:
        return self.ZOO_ADDRESS + path[len(self.PREFIX) :]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._address(path), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._address(path), mode, buffering, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return True  # the zoo provides single files only

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


for _handler in (HTTPURLHandler, OneDrivePathHandler, Detectron2Handler):
    PathManager.register_handler(_handler())
