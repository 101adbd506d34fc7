import threading
import time
import weakref

import pytest

from d2_maskrcnn.video.pipeline import Channel, Closed, Pipeline, Stage

PLUS = Stage("plus", lambda items: [item + 1 for item in items])


def test_empty_source():
    with Pipeline([], [PLUS]) as pipeline:
        assert list(pipeline) == []


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_order_is_kept(batch):
    sizes = []

    def work(items):
        sizes.append(len(items))
        return [item * 2 for item in items]

    with Pipeline(range(40), [PLUS, Stage("double", work, batch), PLUS]) as pipeline:
        assert list(pipeline) == [(i + 1) * 2 + 1 for i in range(40)]
    assert max(sizes) <= batch and sum(sizes) == 40
    assert batch == 1 or max(sizes) > 1


def test_stages_work_at_the_same_time():
    """The last stage keeps the first item until the first stage has taken the next one."""
    taken = threading.Event()

    def first(items):
        if items == [1]:
            taken.set()
        return items

    def last(items):
        assert taken.wait(30)
        return items

    with Pipeline(range(10), [Stage("first", first), PLUS, Stage("last", last)]) as pipeline:
        assert list(pipeline) == list(range(1, 11))


def test_a_slow_consumer_blocks_the_source():
    given = 0

    def source():
        nonlocal given
        for item in range(1000):
            given += 1
            yield item

    with Pipeline(source(), [PLUS, PLUS], capacity=2) as pipeline:
        for taken, _ in enumerate(pipeline, start=1):
            time.sleep(0.01)
            assert given - taken <= 3 * 2 + 2 + 2  # three channels, an item per stage, one read, one yielded
            if taken == 30:
                break
    assert given < 50


def test_stages_keep_no_reference_to_finished_items():
    """A stage that waits for its next item has released the previous one."""

    class Item:
        pass

    alive, left = weakref.WeakSet(), []

    def source():
        for _ in range(5):
            deadline = time.monotonic() + 5
            while len(alive) and time.monotonic() < deadline:
                time.sleep(0.01)
            left.append(len(alive))
            item = Item()
            alive.add(item)
            yield item
            del item

    with Pipeline(source(), [Stage("a", list), Stage("b", list)]) as pipeline:
        for item in pipeline:
            del item
    assert left == [0] * 5


def test_an_error_is_raised_after_the_finished_items():
    def source():
        yield from range(5)
        raise OSError("the decoder failed")

    got = []
    slow = Stage("slow", lambda items: (time.sleep(0.01), items)[1], 2)
    with Pipeline(source(), [PLUS, slow]) as pipeline, pytest.raises(OSError, match="the decoder failed"):
        for item in pipeline:
            got.append(item)
    assert got == [1, 2, 3, 4, 5]


def test_an_error_in_a_stage_stops_the_source():
    def work(items):
        if items[0] == 3:
            raise ValueError("bad item")
        return items

    threads = threading.active_count()
    got = []
    stages = [PLUS, Stage("work", work), PLUS]
    with Pipeline(iter(range(10**9)), stages) as pipeline, pytest.raises(ValueError, match="bad item"):
        for item in pipeline:
            got.append(item)
    assert got == [2, 3]
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_an_interrupt_finishes_the_items_of_the_model():
    seen = []

    def model(items):
        time.sleep(0.02)
        seen.extend(items)
        return items

    got = []
    stages = [Stage("prepare", lambda i: i, droppable=True), Stage("model", model, droppable=True), PLUS]
    with Pipeline(iter(range(10**9)), stages) as pipeline:
        for item in pipeline:
            got.append(item)
            if len(got) == 5:
                pipeline.interrupt()
    assert got == [item + 1 for item in seen]
    assert 5 <= len(got) <= 12


def test_an_interrupt_does_not_wait_for_a_stalled_source():
    release, released = threading.Event(), threading.Event()

    def source():
        yield 1
        release.wait(30)
        released.set()

    with Pipeline(source(), [PLUS]) as pipeline:
        for _ in pipeline:
            pipeline.interrupt()
    assert not released.is_set()
    release.set()


def test_a_live_source_drops_stale_frames():
    """A camera takes ten frames while the model processes one; it would wait in vain if it were blocked."""
    allowed, taken = threading.Semaphore(1), threading.Semaphore(0)  # tens of frames
    newest, lags = [0], []

    def camera():
        for number in range(200):
            if number % 10 == 0:
                assert allowed.acquire(timeout=30)
            newest[0] = number
            time.sleep(0.001)  # lets the other threads run
            yield number
            if number % 10 == 9 and number > 9:
                taken.release()
        taken.release(200)

    def model(items):
        lags.append(newest[0] - items[0])
        allowed.release()
        assert taken.acquire(timeout=30)
        return items

    stages = [Stage("prepare", lambda i: i, droppable=True), Stage("model", model, droppable=True)]
    with Pipeline(camera(), stages, live=True) as pipeline:
        numbers = list(pipeline)
        assert pipeline.dropped == 200 - len(numbers)
    assert numbers == sorted(numbers) and len(numbers) < 30
    assert max(lags) <= 25  # the frames of two or three times the model's duration: the queue does not grow


def test_channel():
    channel = Channel(2)
    channel.put(1)
    channel.put(2)
    with pytest.raises(TimeoutError):
        Channel(1).get(timeout=0.01)
    channel.end()
    assert [channel.get(), channel.get()] == [1, 2]
    with pytest.raises(Closed):
        channel.get()
    channel.close()
    with pytest.raises(Closed):
        channel.put(3)
    with pytest.raises(ValueError, match="0"):
        Channel(0)


def test_leaky_channel_keeps_the_newest():
    channel = Channel(2, leaky=True)
    for item in range(5):
        channel.put(item)
    assert [channel.get(), channel.get()] == [3, 4] and channel.dropped == 3


def test_the_last_item_of_a_live_source_precedes_its_error():
    busy, release = threading.Event(), threading.Event()

    def source():
        yield 1
        busy.wait(timeout=10)
        yield 2  # waits in front of the stage when the error follows it
        threading.Timer(0.1, release.set).start()
        raise ValueError("unplugged")

    def work(items):
        busy.set()
        release.wait(timeout=10)
        return items

    results = []
    pipeline = Pipeline(source(), [Stage("slow", work, droppable=True)], live=True)
    with pytest.raises(ValueError, match="unplugged"), pipeline:
        for item in pipeline:
            results.append(item)
    assert results == [1, 2]
