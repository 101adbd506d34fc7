"""Random sampling of labeled anchors or proposals with a limited share of objects (arXiv:1504.08083, section 2.3)."""

from collections.abc import Sequence

import torch

Samples = tuple[torch.Tensor, torch.Tensor]


def sample_labels(
    labels: torch.Tensor,
    num_samples: int,
    positive_fraction: float,
    bg_label: int,
    generator: torch.Generator | None = None,
) -> Samples:
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
    return sample_batch([labels], num_samples, positive_fraction, bg_label, generator)[0]


def sample_batch(
    labels: Sequence[torch.Tensor],
    num_samples: int,
    positive_fraction: float,
    bg_label: int,
    generator: torch.Generator | None = None,
) -> list[Samples]:
    """Sample elements of each image as :func:`sample_labels` does, image by image, and wait for the device only once.

    The numbers of objects and of background elements must be known to the host: like Detectron2's, the samples are the
    first elements of a random permutation of each.
    """
    if not labels:
        return []
    masks = [mask for item in labels for mask in ((item != -1) & (item != bg_label), item == bg_label)]
    counts = torch.stack([mask.count_nonzero() for mask in masks]).tolist()
    samples = []
    for index in range(0, len(masks), 2):
        num_positive = min(counts[index], int(num_samples * positive_fraction))
        num_negative = min(counts[index + 1], num_samples - num_positive)
        positive = _sample(masks[index], counts[index], num_positive, generator)
        samples.append((positive, _sample(masks[index + 1], counts[index + 1], num_negative, generator)))
    return samples


def _sample(mask: torch.Tensor, count: int, number: int, generator: torch.Generator | None) -> torch.Tensor:
    """Sample ``number`` of the ``count`` elements where ``mask`` is True: ``mask.nonzero()[permutation[:number]]``."""
    ranks = torch.randperm(count, device=mask.device, generator=generator)[:number]
    return indices_of_ranks(mask, ranks)


def indices_of_ranks(mask: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Return the index of the first, second, ... True in ``mask``, without waiting for the device as ``nonzero`` would.

    Args:
        mask: (R,) bool. ranks: (n,) int64, each counted from 0 and below the number of True.
    """
    ordinals = mask.cumsum(0, dtype=torch.int32)  # eight times as fast as int64 on a CPU
    return torch.searchsorted(ordinals, (ranks + 1).to(torch.int32))
