"""Which weights were never trained: equal to their initialisation or, where that is not known, like one by chance."""

import math

import numpy as np
import torch

_SAMPLE = 20_000  # values that two distributions are compared by
# Two-sample Kolmogorov-Smirnov at the 0.1% level (Smirnov 1948): of a thousand untrained tensors one is overlooked.
_KS_C = 1.949
_BLOCK = 256  # rows and columns of a weight whose largest singular value is looked at
# The largest eigenvalue of independent values exceeds this many units of its own spread once in some thousand cases.
_TRACY_WIDOM = 4.0


def untrained(name: str, values: torch.Tensor, fresh: torch.Tensor | None = None, exact: bool = False) -> str:
    """Says in words that a tensor is (perhaps) untrained; "" where it is not.

    Args:
        name: by its last part, norms and biases are known to start as constants.
        fresh: the same tensor of a model just initialised; None if there is none.
        exact: ``fresh`` is the very initialisation that the training began with.
    """
    initial = {"running_var": 1.0, "running_mean": 0.0, "bias": 0.0, "weight": 1.0}.get(name.rsplit(".", 1)[-1])
    if values.numel() == 0:
        return ""
    if initial is not None and (values.dim() == 1 or not name.endswith("weight")) and bool((values == initial).all()):
        return f"untrained: all values are the initial {initial:g}"
    if fresh is None or values.shape != fresh.shape or values.dim() < 2:
        return ""
    if torch.equal(values.detach().cpu().float(), fresh.detach().cpu().float()):
        return "untrained: equal to its initialisation"
    return "" if exact else _by_chance(values, fresh)


def _by_chance(values: torch.Tensor, fresh: torch.Tensor) -> str:
    distance, limit = kolmogorov_smirnov(values, fresh)
    if distance > limit or spectral_excess(values) >= _TRACY_WIDOM:
        return ""
    return (
        f"perhaps untrained: distributed like a fresh initialisation (Kolmogorov-Smirnov {distance:.3f} < {limit:.3f})"
    )


def spectral_excess(values: torch.Tensor) -> float:
    """How far the largest eigenvalue of a weight's covariance lies beyond that of independent values of its variance.

    In units of the spread of the Tracy-Widom law (Johnstone 2001, "On the distribution of the largest eigenvalue in
    principal components analysis", theorem 1.1): about -1.2 +- 1.3 for untrained weights; gradients, being of low
    rank, push it up. Looks at ``values`` (n, ...) as an (n, p) matrix, of which a block is taken. Weights that are not
    finite or all equal have none: infinite.
    """
    block = values.detach().float().cpu().flatten(1)[:_BLOCK, :_BLOCK]
    rows, columns = block.shape
    deviation = float(block.std(correction=0))
    if min(rows, columns) < 2 or not deviation > 0 or not math.isfinite(deviation):
        return 0.0 if min(rows, columns) < 2 else math.inf
    largest = float(torch.linalg.svdvals(block / deviation)[0]) ** 2
    edge = math.sqrt(rows - 1) + math.sqrt(columns)
    return (largest - edge**2) / (edge * (1 / math.sqrt(rows - 1) + 1 / math.sqrt(columns)) ** (1 / 3))


def kolmogorov_smirnov(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Largest distance between the two distribution functions, and what chance exceeds in a thousandth of cases."""
    first, second = (_sorted_sample(values) for values in (a, b))
    both = np.concatenate([first, second])
    steps = [np.searchsorted(values, both, side="right") / len(values) for values in (first, second)]
    limit = _KS_C * math.sqrt((len(first) + len(second)) / (len(first) * len(second)))
    return float(np.abs(steps[0] - steps[1]).max()), limit


def _sorted_sample(values: torch.Tensor) -> np.ndarray:
    flat = values.detach().float().cpu().flatten()
    return np.sort(flat[:: max(1, flat.numel() // _SAMPLE)].numpy())
