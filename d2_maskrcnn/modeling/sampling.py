"""Random sampling of labeled anchors or proposals with a limited share of objects (arXiv:1504.08083, section 2.3)."""

import torch


def sample_labels(
    labels: torch.Tensor,
    num_samples: int,
    positive_fraction: float,
    bg_label: int,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample up to ``num_samples`` elements of an image without replacement.

    Background elements take the place of missing objects, but not the reverse.

    Args:
        labels: (R,) integers: ``bg_label`` for background, -1 for elements that are never sampled, any other value
            for objects.
        positive_fraction: maximum share of objects among ``num_samples``, in [0, 1].
        generator: on the device of ``labels``; None for PyTorch's global one.

    Returns:
        indices of the sampled objects and of the sampled background, each (n,) int64, in random order.
    """
    positive = ((labels != -1) & (labels != bg_label)).nonzero().flatten()
    negative = (labels == bg_label).nonzero().flatten()
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    return _sample(positive, num_positive, generator), _sample(negative, num_negative, generator)


def _sample(indices: torch.Tensor, number: int, generator: torch.Generator | None) -> torch.Tensor:
    return indices[torch.randperm(indices.numel(), device=indices.device, generator=generator)[:number]]
