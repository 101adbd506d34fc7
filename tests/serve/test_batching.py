"""The thread of the model: batches, failures, and its end."""

import threading
from concurrent.futures import CancelledError, Future

import numpy as np
import pytest

from d2_maskrcnn.serve import batching
from d2_maskrcnn.serve.batching import Batcher, Job
from tests.serve.conftest import WAIT


@pytest.fixture
def batcher(gated):
    batcher = Batcher(gated, 4, lambda images, seconds: None)
    gated.batches.append(0)  # no warm-up
    yield batcher
    gated.gate.set()
    batcher.close()


@pytest.fixture
def job(predictor):
    """Function that returns a job for an image with one bright column."""

    def make(side=64, column=0):
        image = np.zeros((side, side, 3), np.uint8)
        image[:, column] = 255
        return Job(predictor.prepare(image), (side, side), Future())

    return make


def test_closed_without_jobs(batcher):
    batcher.close()
    assert not batcher.alive
    with pytest.raises(RuntimeError, match="stopping"):
        batcher.submit(Job(np.zeros((3, 8, 8), np.uint8), (8, 8), Future()))


def test_what_arrives_during_a_batch_is_the_next_one(batcher, gated, job):
    batcher.start()
    jobs = [job()]
    batcher.submit(jobs[0])
    assert gated.entered.acquire(timeout=WAIT)  # the first runs alone
    for _ in range(6):
        jobs.append(job())
        batcher.submit(jobs[-1])
    jobs[3].result.cancel()
    gated.gate.set()
    for each in jobs:
        if not each.result.cancelled():
            assert each.result.result(WAIT).image_size == (64, 64)
    assert gated.batches == [0, 1, 3, 2]  # four of the queue, less the cancelled one, and the rest


def test_only_images_of_one_padded_size_share_a_batch(batcher, gated, job):
    batcher.start()
    jobs = [job(64), job(64), job(96), job(64)]
    jobs[2].image = jobs[2].image[:, :32]
    gated.gate.clear()
    for each in jobs:
        batcher.submit(each)
    gated.gate.set()
    assert [each.result.result(WAIT).image_size for each in jobs] == [(64, 64), (64, 64), (96, 96), (64, 64)]


def test_a_failed_batch_is_processed_one_by_one(batcher, gated, job):
    gated.error = lambda inputs: any(each.max() == 7 for each in inputs)
    jobs = [job(), job(), job()]
    jobs[1].image[:] = 7
    for each in jobs:
        batcher.submit(each)
    gated.gate.set()
    batcher.start()
    with pytest.raises(RuntimeError, match="not enough memory"):
        jobs[1].result.result(WAIT)
    assert jobs[0].result.result(WAIT).image_size == jobs[2].result.result(WAIT).image_size == (64, 64)
    assert batcher.alive and batcher.seconds_per_image > 0


def test_waiting_images_have_limited_memory(batcher, gated, job, monkeypatch):
    jobs = [job(), job(), job()]
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", 2 * jobs[0].image.nbytes)
    for each in jobs[:2]:
        batcher.submit(each)
    third = threading.Thread(target=batcher.submit, args=(jobs[2],))
    third.start()
    assert len(batcher._jobs) == 2  # the third waits until there is room
    gated.gate.set()
    batcher.start()
    assert jobs[2].result.result(WAIT).image_size == (64, 64)
    third.join(WAIT)


def test_close_cancels_what_waits(batcher, gated, job):
    batcher.start()
    running, waiting = job(), job()
    batcher.submit(running)
    assert gated.entered.acquire(timeout=WAIT)
    batcher.submit(waiting)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result.result(WAIT)
    gated.gate.set()
    closing.join(WAIT)
    assert running.result.result(WAIT).image_size == (64, 64)
    assert not batcher.alive
