"""Statistics of tensors and arrays that several sections share."""

import math

import numpy as np
import torch


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


def spread(values: torch.Tensor) -> float:
    """Compute the standard deviation of float32 values, summed in float64 without a float64 copy of them."""
    centered = values - values.mean(dtype=torch.float64).float()
    return math.sqrt(float(centered.square_().mean(dtype=torch.float64)))
