from itertools import islice

import numpy as np
import pytest

from d2_maskrcnn.data.batches import BatchStream


def naive_batches(groups, batch_size, stream):
    """One image at a time, as Detectron2 describes aspect-ratio grouping."""
    waiting = {}
    for index in stream:
        queue = waiting.setdefault(groups[index], [])
        queue.append(index)
        if len(queue) == batch_size:
            yield list(queue)
            queue.clear()


def take(stream, start, count):
    return [batch.tolist() for batch in islice(stream.batches_from(start), count)]


def test_no_images():
    with pytest.raises(ValueError, match="at least 1 image"):
        BatchStream(np.zeros(0), 2, seed=0)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("repeated", [False, True])
def test_grouping_equals_one_image_at_a_time(count, batch_size, repeated, monkeypatch):
    monkeypatch.setattr("d2_maskrcnn.data.batches.SHUFFLED_TOGETHER", 150)
    rng = np.random.default_rng(count)
    groups = rng.integers(0, 2, count)
    stream = BatchStream(groups, batch_size, seed=5, repeats=1 + 2 * rng.random(count) if repeated else None)
    flat = np.concatenate([stream._shuffled_block(block) for block in range(60)]).tolist()
    expected = list(naive_batches(groups, batch_size, flat))
    assert len(expected) > 100
    assert take(stream, 0, len(expected)) == expected


@pytest.mark.parametrize("start", [0, 1, 13, 500])
def test_entering_late_gives_the_tail(start):
    stream = BatchStream(np.arange(37) % 2, 4, seed=1)
    assert take(stream, start, 50) == take(stream, 0, start + 50)[start:]


def test_every_epoch_holds_every_image_once_in_a_new_order():
    stream = BatchStream(np.zeros(20), 5, seed=2)
    epochs = np.array(take(stream, 0, 400)).reshape(100, 20)
    assert (np.sort(epochs, axis=1) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 100
    first = np.bincount(epochs[:, 0], minlength=20)
    assert first.max() < 20  # no image is favoured: 5 expected of each


def test_seeds_and_batch_sizes():
    streams = [BatchStream(np.zeros(20), 5, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (take(stream, 0, 8) for stream in streams)
    assert first == again != other


def test_images_come_as_often_as_their_repeat_factor_says():
    repeats = np.array([1.0, 1.5, 3.0, 2.25])
    stream = BatchStream(np.zeros(4), 31, seed=0, repeats=repeats)
    counts = np.bincount(np.concatenate(take(stream, 0, 1000)))
    np.testing.assert_allclose(counts / counts.sum(), repeats / repeats.sum(), atol=0.005)
