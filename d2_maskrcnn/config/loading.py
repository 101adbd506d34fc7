"""Reads YAML configs and ``KEY VALUE`` overrides so that every mistake is answered with one clear line.

YAML is read with the safe loader only: a config can hold numbers, strings, lists and maps, and never runs code.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2_maskrcnn.config.keys import COMPONENTS, RENAMED_KEYS, add_d2_maskrcnn_config, get_value
from d2_maskrcnn.errors import UserError, did_you_mean
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    RPN_HEAD_REGISTRY,
)
from detectron2.utils.file_io import PathManager

BASE_KEY = "_BASE_"
logger = logging.getLogger(__name__)

COMPONENT_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
}


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The defaults, with ``config_file`` (and its ``_BASE_`` files) and then ``opts`` merged over them.

    Args:
        config_file: path of a YAML file; empty for the defaults alone.
        opts: ``KEY VALUE KEY VALUE ...`` as given on a command line.

    Returns:
        A config that can still be changed (not frozen).

    Raises:
        UserError: a file is missing or is no YAML, a key is unknown (the nearest known one is named), or a value has
        the wrong
            type.
    """
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    if config_file:
        for path, values in read_yaml_with_bases(config_file):
            _merge(cfg, values, where=str(path))
    if len(opts) % 2:
        raise UserError(
            f"Command line: {len(opts)} words after the options ({' '.join(opts)}); expected pairs KEY VALUE, "
            "such as SOLVER.BASE_LR 0.001."
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, key, value, where="command line")
    return cfg


def read_yaml_with_bases(config_file: str) -> list[tuple[Path, dict[str, Any]]]:
    """The maps of ``config_file`` and of its ``_BASE_`` files, the outermost base first.

    Raises:
        UserError: a file is missing, is no YAML, holds no map, or is its own base.
    """
    chain: list[tuple[Path, dict[str, Any]]] = []
    path: Path | None = Path(PathManager.get_local_path(config_file) if "://" in config_file else config_file)
    seen: list[Path] = []
    while path is not None:
        if path.resolve() in seen:
            raise UserError(f"Config {path}: {BASE_KEY} leads back to the file itself; remove one of the links.")
        seen.append(path.resolve())
        values = _read_yaml(path, parent=chain[-1][0] if chain else None)
        base = values.pop(BASE_KEY, None)
        chain.append((path, values))
        path = None if base is None else path.parent / Path(str(base)).expanduser()
    return chain[::-1]


def _read_yaml(path: Path, parent: Path | None) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        asked = f" (named as {BASE_KEY} by {parent})" if parent else ""
        raise UserError(f"Config {path}{asked}: file not found.{did_you_mean(path.name, names)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Config {path} cannot be read as text: {error}.") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"Config {path}{where}: not valid YAML ({problem}).") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"Config {path}: expected a map of keys such as MODEL or SOLVER, found a {type(values).__name__}."
        )
    return values


def _leaves(values: dict[Any, Any], node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value) for each value that is not itself a config node."""
    for key, value in values.items():
        child = node.get(key) if isinstance(node, dict) else None
        if isinstance(value, dict) and (isinstance(child, dict) or child is None):
            yield from _leaves(value, child, f"{prefix}{key}.")
            if not value and child is None:
                yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, values: dict[str, Any], where: str) -> None:
    """Merges a map key by key, so that an error can name its key."""
    for key, value in _leaves(values, cfg):
        if key == "VERSION":
            if value != cfg.VERSION:
                raise UserError(f"{where}: VERSION {value!r}; only configs of version {cfg.VERSION} are understood.")
            continue
        _set(cfg, key, value, where)


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    if key in RENAMED_KEYS:
        logger.warning("%s: %s is now called %s; rename it.", where, key, RENAMED_KEYS[key])
        key = RENAMED_KEYS[key]
    old = check_key(cfg, key, where)
    if isinstance(old, float) and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # what is no number is refused below
            value = float(value)  # yacs would refuse "SOLVER.BASE_LR 1" for being an int
    try:
        cfg.merge_from_list([key, value])
    except (ValueError, SyntaxError) as error:
        raise UserError(
            f"{where}: {key} = {value!r} is a {type(value).__name__}; expected a {type(old).__name__}, such as {old!r}."
        ) from error


def check_components(cfg: CfgNode) -> None:
    """Looks the names of the model's parts up in Detectron2's registries before anything is built.

    Raises:
        UserError: a name is not registered; the nearest one is named.
    """
    for key, registry in COMPONENT_REGISTRIES.items():
        name = get_value(cfg, key)
        known = [str(entry) for entry, _ in registry]
        if name not in known:
            hint = did_you_mean(str(name), known, cutoff=0.3) or f" Did you mean {COMPONENTS[key]}?"
            raise UserError(
                f"{key} is {name!r}, which is not a registered component.{hint} Known: {', '.join(sorted(known))}."
            )


def all_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Every full key of ``cfg``, nodes included, such as ``MODEL.RPN`` and ``MODEL.RPN.NMS_THRESH``."""
    keys: list[str] = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys.extend(all_keys(value, f"{prefix}{name}."))
    return keys


def check_key(cfg: CfgNode, key: str, where: str) -> Any:
    """The value of ``cfg`` under ``key``, such as ``SOLVER.BASE_LR``.

    Raises:
        UserError: there is no such key (the nearest known one is named), or it is a group of keys.
    """
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise UserError(f"{where}: unknown key {key}.{_nearest(cfg, key)}")
        node = node[part]
    if isinstance(node, CfgNode):
        raise UserError(f"{where}: {key} is a group of keys ({', '.join(list(node)[:4])}, ...); name one of them.")
    return node


def _nearest(cfg: CfgNode, key: str) -> str:
    known = [name for name in all_keys(cfg) if "." in name or not isinstance(cfg[name], CfgNode)]
    last = key.rsplit(".", 1)[-1].upper()
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == last]
    hint = did_you_mean(key, same_name or known, cutoff=0.0 if same_name else 0.6)
    return hint or " configs/base.yaml and config/keys.py list the keys."
