"""Read a YAML config and the files that it inherits from. Only plain YAML is read, which cannot run code."""

import os
from collections.abc import Callable
from typing import IO, Any

import yaml

BASE_KEY = "_BASE_"


def load_yaml_with_base(
    filename: str, open_file: Callable[[str], IO[Any]], chain: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read ``filename`` and, before it, the files in its ``_BASE_`` key.

    Args:
        filename: path or address of the file.
        open_file: opens such a path for reading.
        chain: the files that led here through ``_BASE_``, the outermost first.

    Returns:
        A nested dict without ``_BASE_``: the bases, merged in their order, and over them the file's own keys.

    Raises:
        FileNotFoundError: a file does not exist; the message names the file that inherits from it.
        ValueError: a file is not a YAML mapping, has a tag, or inherits from itself.
    """
    if filename in chain:
        raise ValueError(f"{BASE_KEY} is circular: {' -> '.join([*chain, filename])}")
    own = _read_mapping(filename, open_file, chain)
    bases = own.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        path = _resolve_base(base, filename)
        _merge_into(load_yaml_with_base(path, open_file, (*chain, filename)), merged, filename)
    _merge_into(own, merged, filename)
    return merged


def _read_mapping(filename: str, open_file: Callable[[str], IO[Any]], chain: tuple[str, ...]) -> dict[str, Any]:
    asked_by = f" (named by {BASE_KEY} in {chain[-1]!r})" if chain else ""
    try:
        with open_file(filename) as file:
            loaded = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Config file {filename!r} does not exist{asked_by}.") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"Config file {filename!r} is a folder{asked_by}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"Config file {filename!r} is not valid YAML: {_one_line(error)}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ValueError(f"Config file {filename!r} must contain `KEY: value` pairs, not a {type(loaded).__name__}.")
    return loaded


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _resolve_base(base: object, filename: str) -> str:
    """Resolve a base relative to the file that inherits from it, unless it is absolute, an address, or starts with
    ``~``.
    """
    if not isinstance(base, str):
        raise ValueError(f"{BASE_KEY} in {filename!r} must be a file name or a list of file names, got {base!r}.")
    base = os.path.expanduser(base)
    if "://" in base or os.path.isabs(base):
        return base
    return os.path.join(os.path.dirname(filename), base)


def _merge_into(source: dict[str, Any], target: dict[str, Any], filename: str) -> None:
    for key, value in source.items():
        inherited = target.get(key)
        if isinstance(value, dict) and isinstance(inherited, dict):
            _merge_into(value, inherited, filename)
        elif isinstance(value, dict) and key in target:
            raise ValueError(f"{filename!r}: {key!r} is a section here but the value {inherited!r} in its {BASE_KEY}.")
        else:
            target[key] = value
