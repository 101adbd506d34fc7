"""Load a model: its config, its weights, and the names and ids of its classes."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config.loading import check_components, load_config, parse_config
from d2_maskrcnn.config.named import named_config
from d2_maskrcnn.config.validation import check_each_value, usable_device
from d2_maskrcnn.errors import UserError, did_you_mean
from d2_maskrcnn.modeling.precision import set_precision
from d2_maskrcnn.runtimes import ExportedModel, is_exported, load_exported, read_info
from d2_maskrcnn.weights.checkpoint_files import stored_category_ids, stored_class_names, stored_metadata
from d2_maskrcnn.weights.download import fetch_weights
from d2_maskrcnn.weights.readers import read_weights
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

logger = logging.getLogger(__name__)


def open_checkpoint(
    weights: str, config: str | Path | None = None, overrides: Sequence[Any] = ()
) -> tuple[CfgNode, dict[str, Any]]:
    """Read a weight file and find its config.

    Args:
        weights: weight file or address.
        config: config file or name that replaces the stored one.
        overrides: ``KEY, VALUE, ...`` merged over it.

    Returns:
        The config with ``MODEL.WEIGHTS`` set, and the content of the file for :func:`load_model`.

    Raises:
        UserError: the file cannot be read, stores no valid config (and ``config`` is None), or a key or value is wrong.
    """
    options = [str(each) for each in overrides]
    cfg = None if config is None else load_config(str(config), options)
    if named_config(weights) and not Path(weights).exists():
        raise UserError(
            f"{weights} is a config, not a weight file: expected the weights, and the config apart from them."
        )
    if is_exported(weights):
        info = read_info(weights)
        content: dict[str, Any] = {"metadata": {"config": info.config, "thing_classes": info.class_names}}
    else:
        content = read_weights(fetch_weights(weights), copy_states=())
    if cfg is None:
        stored = stored_metadata(content).get("config")
        if not isinstance(stored, str) or not stored.strip():
            raise UserError(f"{weights}: stores no config; give the config that it was trained with.")
        cfg = _parse_stored(stored, weights, options)
    cfg.MODEL.WEIGHTS = weights
    return cfg, content


def _parse_stored(text: str, weights: str, options: Sequence[str]) -> CfgNode:
    where = f"The config stored in {weights}"
    try:
        cfg = parse_config(text, where)
    except UserError as error:
        raise UserError(f"{error} Give the config that the weights were trained with in its place.") from error
    return parse_config(text, where, options) if options else cfg


def load_model(
    cfg: CfgNode, device: str | None = None, *, require_weights: bool = True, content: dict[str, Any] | None = None
) -> tuple[nn.Module, list[str]]:
    """Build the model of a config in evaluation mode and load ``MODEL.WEIGHTS`` into it.

    An exported file (``.onnx``, OpenVINO's ``.xml``, ``.pt2``) becomes :class:`~d2_maskrcnn.runtimes.ExportedModel`.

    Args:
        cfg: the config; not changed.
        device: ``cpu``, ``cuda`` or ``cuda:N``; default: ``MODEL.DEVICE``. Without a CUDA device the CPU is used.
        require_weights: refuse a config without weights, and weights that do not fill the whole model.
        content: content of ``MODEL.WEIGHTS`` from :func:`open_checkpoint`; None reads the file.

    Returns:
        The model, whose ``category_ids`` are those that the file stores, if any, and its :func:`class_names`.

    Raises:
        UserError: a component, a value, the device or the weights cannot be used.
    """
    path = cfg.MODEL.WEIGHTS
    if require_weights and not path:
        raise UserError("MODEL.WEIGHTS is empty: set it to the weight file of a trained model.")
    check_components(cfg)
    check_each_value(cfg)
    place = usable_device(device or cfg.MODEL.DEVICE)
    if is_exported(path):
        exported, info = load_exported(cfg, place)
        return exported, info.class_names
    model = _build(cfg, str(place))
    if not path:
        logger.warning("MODEL.WEIGHTS is empty: the model has random weights.")
    checkpointer = MaskRCNNCheckpointer(model)
    checkpoint = checkpointer.load(path, checkpointables=[], content=content)
    if require_weights:
        checkpointer.check_evaluable()
    model.category_ids = stored_category_ids(checkpoint)  # type: ignore[assignment]
    return model, class_names(cfg, checkpoint)


def _build(cfg: CfgNode, device: str) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    return build_model(cfg).eval()


def apply_precision(model: nn.Module, precision: str) -> torch.dtype:
    """Choose the precision of a model in evaluation mode, or of an exported one; see :func:`set_precision`."""
    return model.set_precision(precision) if isinstance(model, ExportedModel) else set_precision(model, precision)


def class_names(cfg: CfgNode, checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names stored in a checkpoint, else those of the first of ``DATASETS.TEST``.

    Args:
        cfg: the model's config.
        checkpoint: as returned by :meth:`MaskRCNNCheckpointer.load`.

    Returns:
        ``MODEL.ROI_HEADS.NUM_CLASSES`` names, or an empty list if neither has that many.
    """
    names = stored_class_names(checkpoint)
    if not names and cfg.DATASETS.TEST:
        names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes")
    if not names or len(names) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        return []
    return [str(name) for name in names]


def class_indices(classes: Sequence[str | int] | None, names: Sequence[str], count: int) -> np.ndarray | None:
    """Look up class numbers; None stands for all classes.

    Args:
        classes: names (case is ignored if none is equal), or numbers counted from 0.
        names: the model's class names.
        count: number of classes of the model.

    Raises:
        UserError: no class is named, or there is no such class; the most similar one is suggested.
    """
    if classes is None:
        return None
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable):
        raise UserError(f"classes {classes!r:.100}: expected a list of names or numbers, such as [{classes!r:.100}].")
    chosen = [index for item in classes for index in _find_class(item, names, count)]
    if not chosen:
        raise UserError("classes is empty: name at least one class, or give None for all.")
    return np.array(chosen)


def _find_class(item: Any, names: Sequence[str], count: int) -> list[int]:
    """Return the numbers of a class, which are several if it is given by a name that several classes have."""
    text = str(item)
    # A number is a name only as text: classes may be called "1", "2", "3".
    for fold in (str, str.lower) if isinstance(item, str) else ():
        if found := [index for index, name in enumerate(names) if fold(name) == fold(text)]:
            return found
    if text.isascii() and text.isdigit() and int(text) < count:
        return [int(text)]
    hint = did_you_mean(text, names) or f" The classes are {', '.join(names) or f'0 to {count - 1}'}."
    raise UserError(f"The model has no class {text!r}.{hint}")


def category_ids(cfg: CfgNode, names: Sequence[str], count: int) -> list[int]:
    """Return the COCO category id of each class: the test dataset's if it has these names, else 1, 2, 3, ..."""
    for name in cfg.DATASETS.TEST:
        metadata = MetadataCatalog.get(name)
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        if ids and len(ids) == count and list(metadata.get("thing_classes", [])) == list(names):
            return sorted(ids, key=lambda key: ids[key])
    return list(range(1, count + 1))
