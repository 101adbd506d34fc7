"""The config node, a copy of the defaults, and the process-wide config."""

from typing import IO, Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.config.compat import LATEST_VERSION, guess_version, rename_old_keys
from detectron2.config.configurable import configurable
from detectron2.config.yaml_files import BASE_KEY, load_yaml_with_base
from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg", "try_get_key"]


class CfgNode(_CfgNode):
    """A YACS config node whose files may inherit from others through ``_BASE_``.

    Values are bool, int, float, str, list, tuple, None or another node. A merge changes existing keys only and keeps
    the type of each value (lists and tuples may replace each other; None may replace anything).
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[Any]:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """Return the nested dict in a YAML file, including what it inherits through ``_BASE_``.

        Args:
            allow_unsafe: without effect: only plain YAML is read, which cannot run code.

        Raises:
            FileNotFoundError: the file, or one that it inherits from, does not exist.
            ValueError: it is not plain YAML, or inherits from itself.
        """
        return load_yaml_with_base(filename, cls._open_cfg)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Override the values of this node by those of a YAML file; see :meth:`load_yaml_with_base`.

        Raises:
            FileNotFoundError: the file, or one that it inherits from, does not exist.
            KeyError: the file sets a key that does not exist.
            ValueError: it is not plain YAML, a value has a wrong type, or its ``VERSION`` is not supported.
        """
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        _upgrade(loaded, self, cfg_filename)
        try:
            _check_sections(loaded, self, "")
            self.merge_from_other_cfg(type(self)(loaded))
        except (KeyError, ValueError) as error:
            raise type(error)(f"{error.args[0]} (in config file {cfg_filename!r})") from error

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Override values by ``[key, value, key, value, ...]``; strings are parsed as Python literals.

        Raises:
            KeyError: a key does not exist.
            ValueError: a key has no value, or a value has a wrong type.
        """
        if len(cfg_list) % 2:
            raise ValueError(
                f"Config overrides must be `KEY VALUE` pairs, but {cfg_list[-1]!r} has no value: {cfg_list}"
            )
        for full_key in cfg_list[0::2]:
            if full_key == BASE_KEY:
                raise KeyError(f"{BASE_KEY} can be set in files only")
            if not self.key_is_deprecated(full_key) and not self.key_is_renamed(full_key):
                self._check_is_value(full_key)
        super().merge_from_list(cfg_list)

    def _check_is_value(self, full_key: str) -> None:
        node: Any = self
        for part in full_key.split("."):
            if not isinstance(node, _CfgNode) or part not in node:
                raise KeyError(f"Non-existent config key: {full_key}")
            node = node[part]
        if isinstance(node, _CfgNode):
            raise ValueError(f"Config key {full_key} is a section: set one of {', '.join(sorted(node))} in it")

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return this node as YAML that :meth:`merge_from_file` can read. Arguments are those of ``yaml.safe_dump``."""
        return super().dump(*args, **kwargs)


def _upgrade(loaded: dict[str, Any], cfg: CfgNode, filename: str) -> None:
    """Give the keys of an older version their present names, if ``cfg`` has the latest version."""
    expected = cfg.get("VERSION", LATEST_VERSION)
    version = loaded.get("VERSION", guess_version(loaded, filename) if expected == LATEST_VERSION else expected)
    if version not in range(expected + 1) or version < expected != LATEST_VERSION:
        raise ValueError(f"Config file {filename!r} has VERSION {version!r}; this engine reads version {expected}.")
    if version < expected:
        rename_old_keys(loaded, version)
        loaded["VERSION"] = expected


def _check_sections(loaded: dict[str, Any], cfg: _CfgNode, prefix: str) -> None:
    """Check that sections replace sections and values replace values (YACS would print the whole section)."""
    for key, value in loaded.items():
        old = cfg.get(key)
        if isinstance(old, _CfgNode) and not isinstance(value, dict):
            raise ValueError(f"Config key {prefix}{key} is a section, it cannot be set to {value!r}")
        if isinstance(value, dict) and key in cfg and not isinstance(old, _CfgNode):
            raise ValueError(f"Config key {prefix}{key} is a value ({old!r}), not a section")
        if isinstance(value, dict) and isinstance(old, _CfgNode):
            _check_sections(value, old, f"{prefix}{key}.")


def get_cfg() -> CfgNode:
    """Return a copy of the default config, which the caller may modify."""
    from detectron2.config.defaults import _C

    return _C.clone()


# Config for code that cannot get one as an argument, set by `set_global_cfg`.
global_cfg = CfgNode()


def set_global_cfg(cfg: CfgNode) -> None:
    """Replace the keys of ``global_cfg`` by those of ``cfg``."""
    global_cfg.clear()
    global_cfg.update(cfg)


def try_get_key(cfg: CfgNode, *keys: str, default: Any = None) -> Any:
    """Return the value of the first of the dotted ``keys`` that exists in ``cfg``, or ``default``."""
    for key in keys:
        node: Any = cfg
        for part in key.split("."):
            if not isinstance(node, _CfgNode) or part not in node:
                break
            node = node[part]
        else:
            return node
    return default
