"""Stages of the ResNet, which save memory by overwriting results and by activation checkpointing."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from d2_maskrcnn.ops.tracing import is_recorded


class Stage(nn.Sequential):
    """Apply blocks one after the other.

    Without gradients, blocks whose ``forward`` has the argument ``overwrite`` store their results in those of the block
    before, unless the stage has forward hooks, which may have recorded these.

    Attributes:
        activation_checkpointing: whether training keeps only the inputs of groups of about sqrt(n) of the n blocks, and
            computes the other activations of a group again in its backward pass (Chen et al. 2016, "Training deep nets
            with sublinear memory cost", arXiv:1604.06174, section 4). Outputs and gradients are the same.
    """

    activation_checkpointing: bool = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in, H, W) to (N, out, H/stride, W/stride)."""
        if not (self.activation_checkpointing and self.training and self._keeps_activations(x)):
            is_free = not is_recorded() and not has_forward_hooks(self)
            for index, block in enumerate(self):
                overwrite = index > 0 and is_free and _can_overwrite(type(block).forward)
                x = block(x, overwrite=True) if overwrite else block(x)
            return x
        size = max(1, math.isqrt(len(self)))
        for start in range(0, len(self), size):
            group = self[start : start + size]
            contexts = functools.partial(_forward_and_recomputation, group)
            x = checkpoint(group, x, use_reentrant=False, context_fn=contexts)
        return x

    def _keeps_activations(self, x: torch.Tensor) -> bool:
        """Return whether a backward pass needs activations of this stage: frozen stages keep none anyway."""
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))


def has_forward_hooks(module: nn.Module) -> bool:
    """Return whether a forward hook of a module, of one of its parts or of all modules may have recorded a result."""
    if nn.modules.module._has_any_global_hook():
        return True
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def is_free(shortcut: nn.Module | None) -> bool:
    """Return whether there is a shortcut's convolution, and only its block uses the result."""
    return shortcut is not None and not has_forward_hooks(shortcut)


@functools.cache
def _can_overwrite(forward: Callable[..., Any]) -> bool:
    return "overwrite" in inspect.signature(forward).parameters


def _forward_and_recomputation(
    blocks: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _unchanged_statistics(blocks)


@contextmanager
def _unchanged_statistics(blocks: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their running statistics, which the forward pass has updated already."""
    norms = [module for module in blocks.modules() if isinstance(module, _BatchNorm) and module.training]
    statistics = [(norm, name, value) for norm in norms for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in statistics:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in statistics:
            setattr(norm, name, value)
