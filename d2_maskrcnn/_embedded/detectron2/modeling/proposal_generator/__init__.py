"""Proposal generators and heads of a region proposal network: registries, and construction from a config."""

from torch import nn

from detectron2._names import lookup
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "RPN_HEAD_REGISTRY", "build_proposal_generator", "build_rpn_head"]

__getattr__ = lookup(__name__)

# Classes or functions of (cfg, input_shape) that return a module: (images, features, targets) -> (proposals, losses).
PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
# Classes or functions of (cfg, input_shape) that return a module: feature maps -> objectness logits and anchor deltas.
RPN_HEAD_REGISTRY = Registry("RPN_HEAD")


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build the proposal generator named ``MODEL.PROPOSAL_GENERATOR.NAME``; None for "PrecomputedProposals".

    Raises:
        KeyError: the name is not registered.
    """
    chosen = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    return None if chosen == "PrecomputedProposals" else PROPOSAL_GENERATOR_REGISTRY.get(chosen)(cfg, input_shape)


def build_rpn_head(cfg: CfgNode, input_shape: list[ShapeSpec]) -> nn.Module:
    """Build the head named ``MODEL.RPN.HEAD_NAME`` for feature maps of these shapes.

    Raises:
        KeyError: the name is not registered.
    """
    return RPN_HEAD_REGISTRY.get(cfg.MODEL.RPN.HEAD_NAME)(cfg, input_shape)
