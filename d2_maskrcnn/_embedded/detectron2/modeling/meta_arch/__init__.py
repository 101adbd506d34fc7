"""Whole models."""

from detectron2._names import lookup
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY, build_model
from detectron2.utils.registry import Registry

# Components that this engine lacks; programs register their own.
SEM_SEG_HEADS_REGISTRY = Registry("SEM_SEG_HEADS")

__all__ = ["META_ARCH_REGISTRY", "SEM_SEG_HEADS_REGISTRY", "build_model"]

__getattr__ = lookup(__name__)
