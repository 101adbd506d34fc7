"""Which images make up which batch: a pure function of (seed, iteration), whatever the number of processes.

Detectron2's samplers hand every process a share of an endless shuffled stream, and every process groups its share into
batches. Here the stream is grouped first, into batches of all processes together, and each process takes its slice of
every batch: one process or eight train on the same images, and the stream can be entered at any iteration.
"""

from collections.abc import Iterator

import numpy as np

# Small datasets are shuffled several times at once, so that entering the stream late takes no time there either.
SHUFFLED_TOGETHER = 8192


class BatchStream:
    """An endless stream of batches of indices.

    Args:
        groups: (N,) int, batches hold images of one group only (landscape and portrait, say).
        batch_size: images in a batch of all processes together.
        seed: of the shuffling.
        repeats: (N,) float, how often an image is seen in an epoch on average (Gupta, Dollár and Girshick 2019, LVIS,
            section 4.2 and appendix B); fractions are rounded up or down at random in every epoch. None: once.

    Raises:
        ValueError: there is nothing to draw from.
    """

    def __init__(self, groups: np.ndarray, batch_size: int, seed: int, repeats: np.ndarray | None = None) -> None:
        if len(groups) == 0:
            raise ValueError("a stream of batches needs at least 1 image, got 0")
        self.groups = np.asarray(groups, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.repeats = repeats
        self.epochs_at_once = max(1, SHUFFLED_TOGETHER // max(1, len(self.groups)))

    def batches_from(self, start: int) -> Iterator[np.ndarray]:
        """Yields batch ``start`` and all that follow, each (batch_size,) int64 indices of images.

        The batches before are made and dropped, a few epochs at a time: the 270,000 of COCO's schedule in a second or
        two.
        """
        waiting = {group: np.empty(0, dtype=np.int64) for group in np.unique(self.groups).tolist()}
        first = block = 0
        while True:
            batches, waiting = self._fill(self._shuffled_block(block), waiting)
            yield from batches[max(0, start - first) :]
            first += len(batches)
            block += 1

    def _shuffled_block(self, block: int) -> np.ndarray:
        """The indices of ``epochs_at_once`` epochs, each shuffled for itself: (M,) int64."""
        rng = np.random.Generator(np.random.PCG64([self.seed, block]))
        count, epochs = len(self.groups), self.epochs_at_once
        index, epoch = np.tile(np.arange(count), epochs), np.repeat(np.arange(epochs), count)
        if self.repeats is not None:
            whole = np.floor(self.repeats)
            up = rng.random((epochs, count)) < self.repeats - whole
            times = (whole + up).astype(np.int64).ravel()
            index, epoch = np.repeat(index, times), np.repeat(epoch, times)
        return index[np.lexsort((rng.random(len(index)), epoch))]

    def _fill(self, stream: np.ndarray, waiting: dict[int, np.ndarray]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Fills batches from ``waiting`` and then ``stream`` (M,), in the order in which their last image comes.

        Returns:
            The batches (B, batch_size), and of each group the indices that wait for the next block.
        """
        groups = self.groups[stream]
        batches, completed, left = [], [], {}
        for group, before in waiting.items():
            places = np.flatnonzero(groups == group)
            queue = np.concatenate([before, stream[places]])
            count = len(queue) // self.batch_size
            batches.append(queue[: count * self.batch_size].reshape(count, self.batch_size))
            last = np.arange(1, count + 1) * self.batch_size - 1 - len(before)  # of each batch, counted in ``places``
            completed.append(places[last])
            left[group] = queue[count * self.batch_size :]
        return np.concatenate(batches)[np.argsort(np.concatenate(completed), kind="stable")], left
