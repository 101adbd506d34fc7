"""From feature maps to proposals: boxes that may hold an object."""

from detectron2._names import lookup
from detectron2.modeling.proposal_generator.build import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, build_rpn_head

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "RPN_HEAD_REGISTRY", "build_proposal_generator", "build_rpn_head"]

__getattr__ = lookup(__name__)
