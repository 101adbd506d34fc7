"""A real server in a thread, with the package's example model."""

import contextlib
import threading
import time

import httpx
import numpy as np
import pytest
import uvicorn

from d2_maskrcnn import Predictor, example
from d2_maskrcnn.data.image_reading import read_image
from d2_maskrcnn.serve import Settings, create_app, open_socket

WAIT = 60  # seconds until a test gives up; nothing takes as long


@contextlib.contextmanager
def serve(app, **options):
    """Yield a client of an application that is served on a free port, with options of uvicorn."""
    with open_socket("127.0.0.1", 0) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx.Client(base_url=address, timeout=WAIT, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def wait_until(condition):
    """Return as soon as a condition is true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class GatedPredictor:
    """A predictor that waits for ``gate`` before each forward pass after the first, which is the warm-up."""

    def __init__(self, predictor):
        self._predictor = predictor
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches = []
        self.error = None

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def predict(self, inputs, sizes):
        if self.batches:
            self.entered.release()
            assert self.gate.wait(WAIT)
            if self.error and self.error(inputs):
                raise RuntimeError("not enough memory")
        self.batches.append(len(inputs))
        return self._predictor.predict(inputs, sizes)


@pytest.fixture(scope="session")
def predictor():
    return Predictor(example.WEIGHTS, device="cpu", threshold=0.05)


@pytest.fixture
def gated(predictor):
    gated = GatedPredictor(predictor)
    yield gated
    gated.gate.set()


@pytest.fixture(scope="session")
def client(predictor):
    """A client of a server with the default limits, except for the size of requests and images."""
    with serve(
        create_app(predictor, Settings(max_bytes=2**20, max_pixels=10**6, max_images=3), "example.pth")
    ) as client:
        yield client


@pytest.fixture(scope="session")
def image():
    """The bytes of an image with four objects."""
    return example.IMAGES[0].read_bytes()


@pytest.fixture(scope="session")
def expected(predictor):
    """Function that returns the records that an answer should contain, for the bytes of an image."""

    def records(content, threshold=0.5):

        results = predictor(read_image(content))
        return [
            {k: v for k, v in each.items() if k != "image_id"}
            for each in results[results.scores > threshold].to_coco(0)
        ]

    return records


def assert_same(annotations, records):
    """Compare an answer with the detections of the same image alone."""
    assert [each["category"] for each in annotations] == [each["category"] for each in records]
    for actual, wanted in zip(annotations, records, strict=True):
        assert actual["score"] == pytest.approx(wanted["score"], abs=1e-4)
        np.testing.assert_allclose(actual["bbox"], wanted["bbox"], atol=0.05)
        assert actual["area"] == pytest.approx(wanted["area"], rel=0.005)
