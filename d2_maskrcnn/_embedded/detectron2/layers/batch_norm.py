"""Normalization layers, and their construction by the names that configs use."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from detectron2._names import lookup
from detectron2.layers.sync_batch_norm import NaiveSyncBatchNorm, SyncBatchNorm

__all__ = ["FrozenBatchNorm2d", "LayerNorm", "NaiveSyncBatchNorm", "get_norm"]


class FrozenBatchNorm2d(nn.Module):
    """Normalize with constant statistics and affine: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    The four (C,) vectors are buffers named ``weight``, ``bias``, ``running_mean`` and ``running_var``: saved and
    loaded, but never trained. A new layer is the identity.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """Create the identity of ``num_features`` channels; ``eps`` is added to the variance."""
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W); shape, dtype and memory format stay.

        If gradients are recorded, the layer is one multiply-add, whose backward pass needs the (C,) scale only;
        ``F.batch_norm`` would keep ``x`` in memory.
        """
        if not (x.requires_grad and torch.is_grad_enabled()):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # (C,)
        shift = self.bias - self.running_mean * scale  # (C,)
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, scale.to(x.dtype).view(1, -1, 1, 1))

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows between the parentheses."""
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Freeze every batch normalization in ``module``, or ``module`` itself, at its present values.

        Returns:
            ``module`` itself, changed in place, or a new layer if it is a batch normalization.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            return cls._frozen_copy(module)
        for name, child in module.named_children():
            frozen = cls.convert_frozen_batchnorm(child)
            if frozen is not child:
                setattr(module, name, frozen)
        return module

    @classmethod
    def _frozen_copy(cls, module: nn.BatchNorm2d | nn.SyncBatchNorm) -> "FrozenBatchNorm2d":
        frozen = cls(module.num_features, module.eps)
        frozen.train(module.training)
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = getattr(module, name)
            if values is None and name == "running_mean":
                raise ValueError("A batch normalization without running statistics cannot be frozen")
            if values is not None:
                setattr(frozen, name, values.detach().clone())
            elif module.running_mean is not None:  # an affine that does nothing, on the device of the statistics
                setattr(frozen, name, getattr(frozen, name).to(module.running_mean.device))
        return frozen


class LayerNorm(nn.Module):
    """Normalize over the channels of (N, C, H, W), separately at each position."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        """Create the layer for ``normalized_shape`` channels; ``eps`` is added to the variance."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, H, W); the shape stays."""
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)  # (N, 1, H, W)
        normalized = (x - mean) * (variance + self.eps).rsqrt()
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Create the normalization layer of a config's ``NORM`` key.

    Args:
        norm: "BN", "SyncBN", "FrozenBN", "GN" (32 groups), "nnSyncBN", "naiveSyncBN" or "LN"; a callable that creates a
            layer for a number of channels; "" or None for no layer.
        out_channels: the number of channels.

    Raises:
        ValueError: ``norm`` is another string.
    """
    if norm is None or norm == "":
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORMS:
        raise ValueError(
            f"Unknown normalization {norm!r}: expected one of {', '.join(_NORMS)}, or an empty string for none"
        )
    return _NORMS[norm](out_channels)


__getattr__ = lookup(__name__)
