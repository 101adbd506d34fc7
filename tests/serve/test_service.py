"""Many requests at a time: right answers, overload, time limits, clients that go away."""

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from fastapi import Request
from PIL import Image

from d2_maskrcnn import example
from d2_maskrcnn.serve import Settings, create_app
from d2_maskrcnn.serve.admission import Admission
from d2_maskrcnn.serve.bodies import Upload, read_uploads
from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.refusals import Refusal
from d2_maskrcnn.serve.service import Options, Service
from tests.serve.conftest import WAIT, assert_same, serve, wait_until
from tests.serve.test_app import RAW, png


def start(client, content, headers=RAW):
    """Send a request in a thread; return the thread and the list that gets its answer."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/predict", content=content, headers=headers)))
    thread.start()
    return thread, answers


def test_parallel_requests_get_their_own_answers(client, expected):
    whole = np.asarray(Image.open(example.IMAGES[0]).convert("RGB"))
    crops = [whole, whole[:, ::-1], whole[:300, :300], whole[100:], whole[:, 64:], whole[::-1], whole[:64, :64]]
    contents = [png(np.ascontiguousarray(each)) for each in crops]
    wanted = [expected(content) for content in contents]
    assert len({str(records) for records in wanted}) == len(wanted)

    def request(number):
        index = number % (len(contents) + 1)
        if index == len(contents):
            return client.post("/predict", content=contents[0][:3000], headers=RAW).status_code == 400
        assert_same(client.post("/predict", content=contents[index], headers=RAW).json()["annotations"], wanted[index])
        return True

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(request, range(24)))


def test_overload_is_refused(gated, image):
    app = create_app(gated, Settings(max_queue=2))
    with serve(app) as client:
        waiting = [start(client, image)]
        assert gated.entered.acquire(timeout=WAIT)
        waiting.append(start(client, image))
        wait_until(lambda: app.state.service.admission.queued == 2)
        answer = client.post("/predict", content=image, headers=RAW)
        assert answer.status_code == 503 and "2 requests are waiting" in answer.json()["error"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        gated.gate.set()
        for thread, answers in waiting:
            thread.join(WAIT)
            assert answers[0].status_code == 200
        assert client.get("/ready").status_code == 200


def test_slow_uploads_leave_the_queue_free(predictor, image):
    app = create_app(predictor, Settings(max_queue=1))
    admission = app.state.service.admission
    with serve(app) as client:
        url = httpx.URL(client.base_url)
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
        with socket.create_connection((url.host, url.port), timeout=WAIT) as connection:
            connection.sendall(head.encode() + image[:100])
            wait_until(lambda: admission.buffered_bytes == 100)
            assert client.get("/ready").status_code == 200
            assert client.post("/predict", content=image, headers=RAW).status_code == 200
        wait_until(lambda: admission.waiting == 0)
        assert admission.queued == 0


def test_bodies_of_all_requests_are_limited(predictor, image):
    app = create_app(predictor, Settings(max_buffered_bytes=len(image) - 1))
    with serve(app) as client:
        answer = client.post("/predict", content=image, headers=RAW)
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        assert client.post("/predict", content=image[:100], headers=RAW).status_code == 400
        assert app.state.service.admission.buffered_bytes == 0


async def silence():
    """Receive nothing from a client that stays connected."""
    await asyncio.Event().wait()


def test_time_limit_of_answers(gated, image):
    service = Service(gated, Settings(timeout=0.05), Metrics())
    service.start()
    try:
        with pytest.raises(Refusal, match="not ready after") as refusal:
            asyncio.run(service.answer(Request({"type": "http"}, silence), [Upload("", image)], Options(0.5, True)))
        assert refusal.value.status_code == 503 and "Retry-After" in refusal.value.headers
    finally:
        gated.gate.set()
        service.close()


def test_time_limit_of_requests():
    settings, metrics = Settings(timeout=0.05), Metrics()
    request = Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, silence)
    admission = Admission(settings, metrics, lambda: 0.0)
    with admission.admit() as ticket, pytest.raises(Refusal, match="not complete after") as refusal:
        asyncio.run(read_uploads(request, settings, ticket))
    assert refusal.value.status_code == 408


def test_a_client_that_goes_away_is_forgotten(gated, image):
    app = create_app(gated, Settings())
    admission = app.state.service.admission
    with serve(app) as client:
        running, _ = start(client, image)
        assert gated.entered.acquire(timeout=WAIT)
        url = httpx.URL(client.base_url)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
        for sent in (len(image), 100):  # the second goes while it sends
            with socket.create_connection((url.host, url.port), timeout=WAIT) as connection:
                connection.sendall(head.encode() + image[:sent])
                wait_until(lambda: admission.waiting == 2)
            wait_until(lambda: admission.waiting == 1)
        gated.gate.set()
        running.join(WAIT)
        assert client.post("/predict", content=image, headers=RAW).status_code == 200
        assert 'endpoint="/predict",status="499"} 2.0' in client.get("/metrics").text


def test_a_fault_of_the_model_is_status_500(gated, image, caplog):
    app = create_app(gated, Settings())
    gated.gate.set()
    with serve(app) as client:
        gated.error = lambda inputs: True
        answer = client.post("/predict", content=image, headers={**RAW, "X-Request-ID": "abc"})
        assert answer.status_code == 500 and answer.headers["X-Request-ID"] == "abc"
        assert "request id abc" in answer.json()["error"] and "memory" not in answer.text
        gated.error = None
        assert client.post("/predict", content=image, headers=RAW).status_code == 200
    assert "not enough memory" in caplog.text


def test_a_stopping_server_refuses_requests(predictor, image):
    app = create_app(predictor, Settings())
    with serve(app) as client:
        app.state.service.admission.stopping = True
        answer = client.post("/predict", content=image, headers=RAW)
        assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
        assert client.get("/ready").status_code == 503


@pytest.mark.parametrize("name", ["a b", "x" * 65, "\xe9"])
def test_strange_request_ids_are_replaced(client, name):
    answer = client.get("/health", headers={"X-Request-ID": name.encode("latin-1")})
    assert len(answer.headers["X-Request-ID"]) == 32
