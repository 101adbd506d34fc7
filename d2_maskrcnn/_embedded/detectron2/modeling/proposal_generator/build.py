"""The registry of proposal generators."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Classes or functions called with (cfg, input_shape), that give a module: (images, features, ground truth) ->
# (proposals, losses).
PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """The proposal generator named ``MODEL.PROPOSAL_GENERATOR.NAME``; None for "PrecomputedProposals".

    Raises:
        KeyError: no such name is registered.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
