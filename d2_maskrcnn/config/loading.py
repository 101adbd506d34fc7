"""Read YAML configs and ``KEY VALUE`` overrides; every mistake is reported in one line.

YAML is read with the safe loader only: a config contains numbers, text, lists and maps, and never runs code.
"""

import ast
import contextlib
import logging
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from d2_maskrcnn.config.keys import COMPONENTS, RENAMED_KEYS, add_d2_maskrcnn_config, get_value
from d2_maskrcnn.config.named import config_names, named_config
from d2_maskrcnn.config.validation import check_value, leaves
from d2_maskrcnn.errors import UserError, did_you_mean, doing, one_line
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

BASE_KEY = "_BASE_"
MAX_BYTES = 2**20  # of a config file
MAX_VALUES = 100_000  # in a config file after its aliases are expanded
# In these a leading ~ is the home folder.
PATH_KEYS = (
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "D2_MASKRCNN.WANDB.DIR",
    *(f"D2_MASKRCNN.DATA.{split}_{kind}" for split in ("TRAIN", "VAL") for kind in ("JSON", "IMAGES")),
)
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
logger = logging.getLogger(__name__)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the defaults, with ``config_file`` (and its ``_BASE_`` files) and then ``opts`` merged over them.

    Args:
        config_file: path of a YAML file, or the name of one in the package, such as ``mrcnn_R101``; empty for the
            defaults alone.
        opts: ``KEY VALUE KEY VALUE ...``, as on a command line.

    Returns:
        A config that can still be changed (not frozen).

    Raises:
        UserError: a file is missing or not valid YAML, a key is unknown (the most similar one is suggested), or a value
            is of a wrong type or out of its range.
    """
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    if config_file:
        with doing(f"reading {config_file}"):
            for path, values in read_yaml_with_bases(config_file):
                _merge(cfg, values, where=str(path))
    return _with_options(cfg, opts)


def parse_config(text: str, where: str, opts: Sequence[str] = ()) -> CfgNode:
    """Return the defaults, with the YAML in ``text`` and then ``opts`` merged over them.

    Args:
        where: where ``text`` comes from, for messages.
        opts: see :func:`load_config`.

    Raises:
        UserError: see :func:`load_config`.
    """
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    _merge(cfg, _parse(text, where), where)
    return _with_options(cfg, opts)


def _with_options(cfg: CfgNode, opts: Sequence[str]) -> CfgNode:
    if len(opts) % 2:
        raise UserError(
            f"Config keys: got {len(opts)} {'word' if len(opts) == 1 else 'words'} ({' '.join(map(str, opts)):.200}); "
            "expected pairs KEY VALUE, such as SOLVER.BASE_LR 0.001."
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, key, value, where="command line")
    for key in PATH_KEYS:
        _set(cfg, key, os.path.expanduser(get_value(cfg, key)), where="command line")
    return cfg


def read_yaml_with_bases(config_file: str) -> list[tuple[Path, dict[str, Any]]]:
    """Read a config file and the files named by ``_BASE_``, each a path relative to the file that names it.

    The name of a config of the package is found from any folder; an existing file of that name comes first.

    Returns:
        Path and content of each file, in the order in which they are merged.

    Raises:
        UserError: a file is missing, not a local file, not valid YAML, not a map, or its own base.
    """
    return _read_chain(config_file, ())


def _read_chain(name: Any, chain: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    named_by = f" (named as {BASE_KEY} by {chain[-1]})" if chain else ""
    if not isinstance(name, str) or not name.isprintable():
        raise UserError(f"Config {name!r:.100}{named_by}: expected the path of a YAML file.")
    if "://" in name:
        raise UserError(f"Config {name}{named_by}: only local files are read; download it and name the copy.")
    path = Path(os.path.expanduser(name))
    path = chain[-1].parent / path if chain else path
    if not path.is_file():
        path = named_config(name) or path
    if path.resolve() in (each.resolve() for each in chain):
        raise UserError(f"Config {path}{named_by}: {BASE_KEY} leads back to the file itself; remove one of the links.")
    values = _parse(_read_file(path, named_by), f"Config {path}")
    bases = values.pop(BASE_KEY, [])
    files: list[tuple[Path, dict[str, Any]]] = []
    for base in bases if isinstance(bases, list) else [bases]:
        files += _read_chain(base, (*chain, path))
    return [*files, (path, values)]


def _parse(text: str | bytes, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, Loader=_Loader)
        size = _size(values, {})
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: a number or date that cannot be
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = one_line(getattr(error, "problem", None) or error)
        raise UserError(f"{source}{where}: not valid YAML ({problem}).") from error
    except RecursionError as error:
        raise UserError(f"{source}: its values are nested too deeply, or contain themselves.") from error
    if size > MAX_VALUES:
        raise UserError(f"{source}: its aliases expand to more than {MAX_VALUES} values.")
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{source}: expected a map of keys such as MODEL, got a {type(values).__name__}.")
    return values or {}


def _read_file(path: Path, named_by: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            kind = f"larger than {MAX_BYTES >> 10} KiB" if stat.S_ISREG(status.st_mode) else "not a file"
            raise UserError(f"Config {path}{named_by} is {kind}; expected a YAML file.")
        return path.read_bytes()
    except FileNotFoundError as error:
        beside = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside) or did_you_mean(path.stem, config_names())
        hint = hint or f" The configs that can be named without a path are {', '.join(config_names())}."
        raise UserError(f"Config {path}{named_by}: file not found.{hint}") from error
    except OSError as error:
        raise UserError(f"Config {path}{named_by} cannot be read: {error.strerror}.") from error


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key_node.value} is given twice", problem_mark=key_node.start_mark
                    )
                seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _size(value: Any, known: dict[int, int]) -> int:
    """Count the values in nested containers, shared ones as often as they are referenced."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in items)
    return known[id(value)]


def _leaves(values: dict[Any, Any], node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full key and the value of everything that is not itself a config node."""
    for key, value in values.items():
        child = node.get(key) if isinstance(node, dict) else None
        if isinstance(value, dict) and (isinstance(child, dict) or child is None):
            yield from _leaves(value, child, f"{prefix}{key}.")
            if not value and child is None:
                yield f"{prefix}{key}", value
        else:
            yield f"{prefix}{key}", value


def _merge(cfg: CfgNode, values: dict[str, Any], where: str) -> None:
    """Merge a map key by key, so that an error can name its key."""
    for key, value in _leaves(values, cfg):
        if key == "VERSION":
            if value != cfg.VERSION:
                raise UserError(f"{where}: VERSION is {value!r:.100}; only version {cfg.VERSION} is supported.")
            continue
        _set(cfg, key, value, where)


def _set(cfg: CfgNode, key: str, value: Any, where: str) -> None:
    if key in RENAMED_KEYS:
        logger.warning("%s: %s is now called %s; rename it.", where, key, RENAMED_KEYS[key])
        key = RENAMED_KEYS[key]
    old = check_key(cfg, key, where)
    new = _decode(value, old)
    check_value(key, new, old, where)
    *groups, name = key.split(".")
    setattr(get_value(cfg, ".".join(groups)) if groups else cfg, name, new)


def _decode(value: Any, old: Any) -> Any:
    """Convert the text of a command line, or a YAML value, to the type of ``old`` if it represents such a value."""
    if isinstance(value, str) and not isinstance(old, str):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # kept as text, and refused
            value = ast.literal_eval(value)
    if type(old) is float and type(value) is int:
        return float(value) if abs(value) < 2**1023 else math.inf
    if isinstance(old, list | tuple) and isinstance(value, list | tuple):
        return type(old)(value)
    return value


def check_components(cfg: CfgNode) -> None:
    """Look up the names of the model's components in Detectron2's registries before anything is built.

    Raises:
        UserError: a name is not registered; the most similar one is suggested.
    """
    for key, registry in COMPONENT_REGISTRIES.items():
        name = get_value(cfg, key)
        known = [str(entry) for entry, _ in registry]
        if name not in known:
            hint = did_you_mean(str(name), known, cutoff=0.3) or f" Did you mean {COMPONENTS[key]}?"
            raise UserError(
                f"{key} is {name!r}, which is not a registered component.{hint} Known: {', '.join(sorted(known))}."
            )


def check_key(cfg: CfgNode, key: str, where: str) -> Any:
    """Return the value of ``cfg`` under ``key``, such as ``SOLVER.BASE_LR``.

    Raises:
        UserError: the key is unknown (the most similar one is suggested), or a group of keys.
    """
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            raise UserError(f"{where}: unknown key {key:.200}.{_hint(cfg, key)}")
        node = node[part]
    if isinstance(node, CfgNode):
        raise UserError(f"{where}: {key} is a group of keys ({', '.join(list(node)[:4])}, ...); name one of them.")
    return node


def _hint(cfg: CfgNode, key: str) -> str:
    known = [name for name, _ in leaves(cfg)]
    same_name = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1].upper()]
    hint = did_you_mean(key[:200], same_name or known, cutoff=0.0 if same_name else 0.6)
    return hint or " configs/base.yaml and config/keys.py list the keys."
