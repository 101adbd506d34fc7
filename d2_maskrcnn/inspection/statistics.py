"""Statistics of tensors and arrays that several sections share."""

import math
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(kw_only=True)
class TensorStatistics:
    """Numbers of one tensor.

    Attributes:
        shape: its size.
        min, max, mean, std: of the finite values; None if there are none.
        zeros: share of exact zeros, in [0, 1].
        nan, inf: number of NaN and infinite values.
    """

    shape: list[int]
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    zeros: float = 0.0
    nan: int = 0
    inf: int = 0


def describe(values: torch.Tensor) -> tuple[TensorStatistics, torch.Tensor]:
    """Compute the statistics of a float32 tensor on the CPU; return them and the finite values."""
    shape, count = list(values.shape), values.numel()
    if count == 0:
        return TensorStatistics(shape=shape), values
    zeros = 1 - int(values.count_nonzero()) / count
    low, high = values.aminmax()  # NaN if any value is
    nan = infinite = 0
    if not (low.isfinite() and high.isfinite()):
        nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
        values = values[values.isfinite()]
        if values.numel() == 0:
            return TensorStatistics(shape=shape, zeros=zeros, nan=nan, inf=infinite), values
        low, high = values.aminmax()
    mean = float(values.mean(dtype=torch.float64))
    # Summed in float64 without a float64 copy of all values.
    std = math.sqrt(float((values - mean).square_().mean(dtype=torch.float64)))
    statistics = TensorStatistics(
        shape=shape, min=float(low), max=float(high), mean=mean, std=std, zeros=zeros, nan=nan, inf=infinite
    )
    return statistics, values


def histogram(values: np.ndarray, bins: int) -> tuple[list[float], list[int]]:
    """Count finite values in ``bins`` equal bins from the lowest to the highest.

    Values that are equal, or too close together for their precision, get a single bin.

    Returns:
        Edges and counts; one more edge than counts.
    """
    if values.size == 0:
        return [0.0, 0.0], [0]
    low, high = values.min(), values.max()
    if (high - low) / bins <= 2 * np.spacing(max(abs(low), abs(high))):
        return [float(low), float(high)], [values.size]
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    return edges.astype(float).tolist(), counts.tolist()


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Compute minimum, quartiles, maximum and mean; empty for no values."""
    if len(values) == 0:
        return {}
    names = ("min", "q25", "median", "q75", "max")
    numbers = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return {**{name: float(v) for name, v in zip(names, numbers, strict=True)}, "mean": float(values.mean())}
