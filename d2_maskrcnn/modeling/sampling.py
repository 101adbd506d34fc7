"""Random subsets of labelled anchors or proposals, with a bounded share of objects (arXiv:1504.08083, section 2.3)."""

import torch


def sample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, background: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws up to ``num_samples`` elements of one image, at most ``positive_fraction`` of them objects, the rest
    background.

    Where objects are too few, background fills up the number.

    Args:
        labels: (R,) integers; ``background`` is background, -1 is never drawn, all else is an object.

    Returns:
        indices of the drawn objects and of the drawn background, each int64 (n,), in random order.
    """
    positive = ((labels != -1) & (labels != background)).nonzero().flatten()
    negative = (labels == background).nonzero().flatten()
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(indices: torch.Tensor, number: int) -> torch.Tensor:
    return indices[torch.randperm(indices.numel(), device=indices.device)[:number]]
