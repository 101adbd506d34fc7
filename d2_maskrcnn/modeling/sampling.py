"""Random subsets of labelled anchors or proposals, with a bounded share of objects (arXiv:1504.08083, section 2.3)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch


class ImageSampling:
    """Draws for each image with a generator of its own, and counts what was drawn.

    A batch then samples the same whether it is computed at once, in parts, or by several processes. The model samples
    anchors for each image of the batch, in order, and then proposals for each image.

    Args:
        seeds: one for each image of the batch.

    Attributes:
        images, rois, foreground: what the losses of this forward pass are divided by: images of the RPN's losses,
            sampled proposals of the box head's, those among them that are objects of the mask head's.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self.images, self.rois, self.foreground = len(seeds), 0, 0
        self._calls = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of the next call of :func:`sample_labels`."""
        stage, image = divmod(self._calls, max(len(self.seeds), 1))
        words = np.random.SeedSequence((self.seeds[image], stage)).generate_state(2)
        return torch.Generator(device).manual_seed(int(words[0]) | (int(words[1]) & 0x7FFFFFFF) << 32)

    def count(self, positive: int, negative: int) -> None:
        """Takes note of what a call has drawn."""
        if self._calls >= len(self.seeds):
            self.rois += positive + negative
            self.foreground += positive
        self._calls += 1


_ACTIVE: ContextVar[ImageSampling | None] = ContextVar("image_sampling", default=None)


@contextmanager
def sampling_by_image(seeds: Sequence[int]) -> Iterator[ImageSampling]:
    """Inside the ``with`` block, one forward pass over ``len(seeds)`` images draws from these seeds alone."""
    sampling = ImageSampling(seeds)
    token = _ACTIVE.set(sampling)
    try:
        yield sampling
    finally:
        _ACTIVE.reset(token)


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
    sampling = _ACTIVE.get()
    generator = None if sampling is None else sampling.generator(labels.device)
    drawn = _draw(positive, num_positive, generator), _draw(negative, num_negative, generator)
    if sampling is not None:
        sampling.count(num_positive, num_negative)
    return drawn


def _draw(indices: torch.Tensor, number: int, generator: torch.Generator | None) -> torch.Tensor:
    return indices[torch.randperm(indices.numel(), device=indices.device, generator=generator)[:number]]
