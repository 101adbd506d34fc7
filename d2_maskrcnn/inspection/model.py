"""Rebuild the initial weights of a model, to tell which layers training has changed."""

import torch

from d2_maskrcnn.weights import fetch_weights, read_weights
from detectron2.config import CfgNode
from detectron2.modeling import build_model


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
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        return dict(build_model(cfg).state_dict()), known
