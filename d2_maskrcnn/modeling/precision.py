"""Half precision is for convolutions: scores, coordinates and losses are computed in float32 or better."""

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """Half-precision ``x`` as float32; float32 and float64 stay what they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
