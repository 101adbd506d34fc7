"""Ask whether a forward pass is recorded as a graph, for fast paths that depend on sizes or memory."""

import torch


def is_recorded() -> bool:
    """Return whether ``torch.jit``, ``torch.export`` or ``torch.compile`` records the operators that run."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
