"""Names that config keys had in earlier versions of Detectron2, so that configs of that time can still be read."""

import logging
from collections.abc import Iterable, MutableMapping
from typing import Any

from fvcore.common.config import CfgNode as _CfgNode

from detectron2._names import lookup

__all__ = ["downgrade_config", "guess_version", "upgrade_config"]

logger = logging.getLogger(__name__)

LATEST_VERSION = 2
Tree = MutableMapping[str, Any]

# Version -> {name in that version: name in the next one}.
_RENAMED = {
    0: {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"},
    1: {
        "MODEL.WEIGHT": "MODEL.WEIGHTS",
        "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
        ),
        "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
        "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "MODEL.RPN.ANCHOR_ASPECT_RATIOS": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "MODEL.RPN.ANCHOR_SIZES": "MODEL.ANCHOR_GENERATOR.SIZES",
        "TEST.AUG_FLIP": "TEST.AUG.FLIP",
        "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
        "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
        "TEST.AUG_ON": "TEST.AUG.ENABLED",
        "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    },
}


def upgrade_config(cfg: _CfgNode, to_version: int | None = None) -> _CfgNode:
    """Return a copy of ``cfg`` with the key names of a later version, by default the latest.

    Raises:
        ValueError: ``to_version`` is not between ``cfg.VERSION`` and the latest version.
    """
    target = LATEST_VERSION if to_version is None else to_version
    if not cfg.VERSION <= target <= LATEST_VERSION:
        raise ValueError(f"cannot upgrade a config of version {cfg.VERSION} to version {target}")
    upgraded = cfg.clone()
    for version in range(cfg.VERSION, target):
        _rename(upgraded, _RENAMED[version].items())
    upgraded.VERSION = target
    return upgraded


def downgrade_config(cfg: _CfgNode, to_version: int) -> _CfgNode:
    """Return a copy of ``cfg`` with the key names of an earlier version.

    Raises:
        ValueError: ``to_version`` is not between 0 and ``cfg.VERSION``.
    """
    if not 0 <= to_version <= cfg.VERSION:
        raise ValueError(f"cannot downgrade a config of version {cfg.VERSION} to version {to_version}")
    downgraded = cfg.clone()
    for version in reversed(range(to_version, cfg.VERSION)):
        _rename(downgraded, ((new, old) for old, new in _RENAMED[version].items()))
    downgraded.VERSION = to_version
    return downgraded


def guess_version(loaded: Tree, filename: str) -> int:
    """Return the version of a config that does not state it, by the keys that only version 1 has."""
    if not any(_parent(loaded, old) is not None for old in _RENAMED[1]):
        return LATEST_VERSION
    logger.warning("Config %r has no VERSION, but keys of version 1: it is read as version 1", filename)
    return 1


def rename_old_keys(loaded: dict[str, Any], version: int) -> None:
    """Give the keys in the content of a config file of ``version`` their present names, in place."""
    for old in range(version, LATEST_VERSION):
        _rename(loaded, _RENAMED[old].items())


def _rename(tree: Tree, names: Iterable[tuple[str, str]]) -> None:
    """Move values from their old to their new dotted names; sections that become empty are removed."""
    for old, new in names:
        parent = _parent(tree, old)
        if parent is None:
            continue
        value = parent.pop(old.rpartition(".")[2])
        sections, _, last = new.rpartition(".")
        node = tree
        for part in sections.split("."):
            node = node.setdefault(part, type(tree)())
        node[last] = value
        section, _, last = old.rpartition(".")[0].rpartition(".")
        outer = _node(tree, section)
        if outer is not None and not outer.get(last, True):
            del outer[last]


def _parent(tree: Tree, name: str) -> Tree | None:
    """Return the section that contains the dotted ``name``; None if there is no such key."""
    node = _node(tree, name.rpartition(".")[0])
    return node if node is not None and name.rpartition(".")[2] in node else None


def _node(tree: Tree, name: str) -> Tree | None:
    node: Any = tree
    for part in filter(None, name.split(".")):
        node = node.get(part) if isinstance(node, MutableMapping) else None
    return node if isinstance(node, MutableMapping) else None


__getattr__ = lookup(__name__)
