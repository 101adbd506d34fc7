"""Whole models."""

from detectron2._names import lookup
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model

__all__ = ["META_ARCH_REGISTRY", "build_model"]

__getattr__ = lookup(__name__)
