"""Find the configs that come with the package by name."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path:
    """Return the folder of the package's configs: inside an installed package, or beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """Return the names of the package's configs, such as ``mrcnn_R101``."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def named_config(name: str) -> Path | None:
    """Return the package's config of a name: ``mrcnn_R101``, ``mrcnn_R101.yaml`` or ``configs/mrcnn_R101.yaml``.

    Returns:
        Its path, or None if the package has no such config.
    """
    path = Path(name)
    if str(path.parent) in (".", "configs") and path.suffix in ("", ".yaml") and path.stem in config_names():
        return config_folder() / f"{path.stem}.yaml"
    return None
