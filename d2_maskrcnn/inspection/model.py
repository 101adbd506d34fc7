"""The model to look at: built from a config, with its weights, on a device that is there."""

import logging
from typing import Any

import torch
from torch import nn

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.config.loading import check_components
from d2_maskrcnn.weights import fetch_weights, read_weights
from detectron2.config import CfgNode
from detectron2.modeling import build_model

logger = logging.getLogger(__name__)


def load_model(cfg: CfgNode) -> tuple[nn.Module, list[str]]:
    """Builds the model of ``cfg`` and loads ``MODEL.WEIGHTS``, if named.

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
    checkpointer: Any = MaskRCNNCheckpointer(model)
    rest = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    if not cfg.MODEL.WEIGHTS:
        logger.warning("MODEL.WEIGHTS is empty: the model has random weights.")
    names = (rest.get("metadata") or {}).get("thing_classes") or []
    return model.eval(), list(names) if len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES else []


def initial_weights(cfg: CfgNode, path: str) -> tuple[dict[str, torch.Tensor], bool]:
    """A fresh initialisation of the model of ``cfg``.

    Args:
        path: a weight file. A checkpoint of this project's trainer knows the seed that its first weights were drawn
            with; for others ``SEED`` of the config is taken where it is set.

    Returns:
        The tensors, and whether they are those that the training of ``path`` began with (before any ``MODEL.WEIGHTS``
        was loaded into them).
    """
    trainer = read_weights(fetch_weights(path)).get("trainer")  # other programs' checkpoints may hold anything there
    seed = trainer.get("initial_seed") if isinstance(trainer, dict) else None
    known = isinstance(seed, int)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed if known else cfg.SEED if cfg.SEED >= 0 else torch.seed() % 2**31)
        return dict(build_model(cfg).state_dict()), known
