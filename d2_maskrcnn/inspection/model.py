"""The model to look at: built from a config, with its weights, on a device that is there."""

import logging
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config_check import check_components
from detectron2.config import CfgNode
from detectron2.modeling import build_model

logger = logging.getLogger(__name__)


def load_model(cfg: CfgNode, initial: dict[str, torch.Tensor] | None = None) -> tuple[nn.Module, list[str]]:
    """Builds the model of ``cfg`` and loads ``MODEL.WEIGHTS``, if named.

    Args:
        initial: gets copies of the tensors as they were before weights were loaded.

    Returns:
        The model in evaluation mode, and the names of the classes that the weight file knows (perhaps none).

    Raises:
        UserError: a part that is not registered, or weights that cannot be read or are another model's.
    """
    check_components(cfg)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        logger.warning("MODEL.DEVICE is cuda but this machine offers no CUDA device: running on the CPU.")
    model = build_model(cfg)
    if initial is not None:
        initial.update({name: value.clone() for name, value in model.state_dict().items()})
    checkpointer: Any = MaskRCNNCheckpointer(model)
    rest = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: the model has random weights.")
    names = (rest.get("metadata") or {}).get("thing_classes") or []
    return model.eval(), list(names) if len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES else []
