"""The config node, a fresh copy of the defaults, and the process-wide config."""

from typing import IO, Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2.config.configurable import configurable
from detectron2.config.yaml_files import BASE_KEY, load_yaml_with_base
from detectron2.utils.file_io import PathManager

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg", "try_get_key"]

# The version of the key names. Files of version 1 (before Detectron2 0.1) used other names.
CONFIG_VERSION = 2


class CfgNode(_CfgNode):
    """A YACS config node whose files may inherit from others through ``_BASE_``.

    Values are bool, int, float, str, list, tuple, None or another node. A merge changes known keys only, and keeps
    the type of the value (a list may stand for a tuple and the other way round; None may stand for anything).
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[Any]:
        return PathManager.open(filename, "r")

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """The nested dict in a YAML file, what it inherits through ``_BASE_`` included.

        Raises:
            FileNotFoundError: the file, or one that it inherits from, does not exist.
            ValueError: it is not plain YAML, inherits from itself, or ``allow_unsafe`` is asked for.
        """
        if allow_unsafe:
            raise ValueError(
                f"allow_unsafe=True for {filename!r}: this engine reads plain YAML only, configs never run code."
            )
        return load_yaml_with_base(filename, cls._open_cfg)

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        """Overrides the values in this node by those of a YAML file.

        Raises:
            FileNotFoundError: the file, or one that it inherits from, does not exist.
            KeyError: the file sets a key that does not exist.
            ValueError: it is not plain YAML, a value has another type than the key's, or its ``VERSION`` is not ours.
        """
        loaded = self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe)
        _check_version(loaded, self, cfg_filename)
        try:
            _check_sections(loaded, self, "")
            self.merge_from_other_cfg(type(self)(loaded))
        except (KeyError, ValueError) as error:
            raise type(error)(f"{error.args[0]} (in config file {cfg_filename!r})") from error

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """Overrides values by ``[key, value, key, value, ...]``; a value that is a string is read as a Python literal.

        Raises:
            KeyError: a key that does not exist.
            ValueError: a key without value, or a value of another type than the key's.
        """
        if len(cfg_list) % 2:
            raise ValueError(
                f"Config overrides must be `KEY VALUE` pairs, but {cfg_list[-1]!r} has no value: {cfg_list}"
            )
        for full_key in cfg_list[0::2]:
            if full_key == BASE_KEY:
                raise KeyError(f"{BASE_KEY} has a meaning in files only")
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
        """This node as YAML that :meth:`merge_from_file` reads back. Arguments go to ``yaml.safe_dump``."""
        return super().dump(*args, **kwargs)


def _check_version(loaded: dict[str, Any], cfg: CfgNode, filename: str) -> None:
    expected = cfg.get("VERSION", CONFIG_VERSION)
    version = loaded.get("VERSION", expected)
    if version != expected:
        raise ValueError(f"Config file {filename!r} has VERSION {version!r}; this engine reads version {expected}.")


def _check_sections(loaded: dict[str, Any], cfg: _CfgNode, prefix: str) -> None:
    """A section must stay a section, and a value a value (YACS would print the whole section in its error)."""
    for key, value in loaded.items():
        old = cfg.get(key)
        if isinstance(old, _CfgNode) and not isinstance(value, dict):
            raise ValueError(f"Config key {prefix}{key} is a section, it cannot be set to {value!r}")
        if isinstance(value, dict) and key in cfg and not isinstance(old, _CfgNode):
            raise ValueError(f"Config key {prefix}{key} is a value ({old!r}), not a section")
        if isinstance(value, dict) and isinstance(old, _CfgNode):
            _check_sections(value, old, f"{prefix}{key}.")


def get_cfg() -> CfgNode:
    """A fresh copy of the default config, which the caller may change freely."""
    from detectron2.config.defaults import _C

    return _C.clone()


# One config for code that no config can be handed to. It is filled by `set_global_cfg`.
global_cfg = CfgNode()


def set_global_cfg(cfg: CfgNode) -> None:
    """Makes ``global_cfg`` hold the keys of ``cfg``, instead of those it held."""
    global_cfg.clear()
    global_cfg.update(cfg)


def try_get_key(cfg: CfgNode, *keys: str, default: Any = None) -> Any:
    """The value of the first of the dotted ``keys`` that ``cfg`` has, or ``default``."""
    for key in keys:
        node: Any = cfg
        for part in key.split("."):
            if not isinstance(node, _CfgNode) or part not in node:
                break
            node = node[part]
        else:
            return node
    return default
