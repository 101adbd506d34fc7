"""Resolve ``catalog://`` addresses: backbones that were trained on ImageNet for Detectron."""

from typing import Any

from iopath.common.file_io import PathHandler

from detectron2.utils.file_io import PathManager

__all__ = ["ModelCatalog", "ModelCatalogHandler"]

_ADDRESS = "https://dl.fbaipublicfiles.com/detectron/"
_BACKBONES = {
    "MSRA/R-50": "MSRA/R-50.pkl",
    "MSRA/R-101": "MSRA/R-101.pkl",
    "FAIR/R-50-GN": "47261647/R-50-GN.pkl",
    "FAIR/R-101-GN": "47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "20171220/X-101-32x8d.pkl",
    "FAIR/X-101-64x4d": "FBResNeXt/X-101-64x4d.pkl",
    "FAIR/X-152-32x8d-IN5k": "25093814/X-152-32x8d-IN5k.pkl",
}


class ModelCatalog:
    """Names of published backbones."""

    @staticmethod
    def get(name: str) -> str:
        """Return the address of a backbone, such as ``"ImageNetPretrained/MSRA/R-50"``.

        Raises:
            RuntimeError: there is no such backbone.
        """
        path = _BACKBONES.get(name.removeprefix("ImageNetPretrained/"))
        if path is None:
            known = ", ".join(f"ImageNetPretrained/{known}" for known in _BACKBONES)
            raise RuntimeError(f"catalog:// has no {name!r}; expected one of {known}")
        return f"{_ADDRESS}ImageNetPretrained/{path}"


class ModelCatalogHandler(PathHandler):
    """Read ``catalog://name`` from the address of :meth:`ModelCatalog.get`."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(ModelCatalog.get(path.removeprefix(self.PREFIX)), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, buffering, **kwargs)


PathManager.register_handler(ModelCatalogHandler(), allow_override=True)
