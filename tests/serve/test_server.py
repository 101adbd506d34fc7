"""The program ``d2-maskrcnn serve``, from its start to its end."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import warnings

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from d2_maskrcnn import example
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.serve import Settings, create_app
from d2_maskrcnn.serve.server import limit_header_time, log_as_json
from tests.serve.conftest import WAIT, assert_same, serve, wait_until

REQUESTS = 3
HEADER = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@pytest.fixture
def process(repo_dir):
    words = [sys.executable, "-m", "d2_maskrcnn", "serve", example.WEIGHTS, "--port", "0", "--timeout", "300"]
    process = subprocess.Popen(list(map(str, words)), cwd=repo_dir, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


def is_refused(url):
    try:
        socket.create_connection((url.host, url.port), timeout=WAIT).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_finishes_what_was_accepted(process, image, expected):
    lines = []
    while not any(line["message"] == "Application startup complete." for line in lines):
        lines.append(json.loads(process.stderr.readline()))
    (url,) = [httpx.URL(line["url"]) for line in lines if line["message"] == "serving"]
    assert url.host == "127.0.0.1"
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
    connections = [socket.create_connection((url.host, url.port), timeout=WAIT) for _ in range(REQUESTS)]
    for connection in connections:
        connection.sendall(head.encode() + image[:-1])
    waiting = f"d2_maskrcnn_requests_waiting {REQUESTS}.0"
    wait_until(lambda: waiting in httpx.get(url.join("/metrics"), trust_env=False, timeout=WAIT).text)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_refused(url))
    for connection in connections:
        connection.sendall(image[-1:])
    for connection in connections:
        with connection, connection.makefile("rb") as file:
            header, _, body = file.read().partition(b"\r\n\r\n")
        assert header.startswith(b"HTTP/1.1 200")
        assert_same(json.loads(body)["annotations"], expected(image))
    lines = [json.loads(line) for line in process.stderr]
    assert process.wait(WAIT) == 0
    answered = [line for line in lines if line["message"] == "request" and line["path"] == "/predict"]
    assert [line["status"] for line in answered] == [200] * REQUESTS
    assert {"time", "level", "id", "client", "method", "seconds", "images", "bytes"} <= set(answered[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["missing.pth"], "missing.pth"),
        ([str(example.WEIGHTS), "--host", "256.0.0.1"], "Cannot listen on 256.0.0.1, port 0"),
        ([str(example.WEIGHTS), "--max-queue", "0"], "max_queue 0: expected a positive number"),
        ([str(example.WEIGHTS), "--max-megabytes", "nan"], "--max-megabytes nan: expected a positive number"),
        ([str(example.WEIGHTS), "--max-megabytes", "inf"], "--max-megabytes inf: expected a positive number"),
        ([str(example.WEIGHTS), "--max-megapixels", "0"], "--max-megapixels 0: expected a positive number"),
        ([str(example.WEIGHTS), "--max-megapixels", "-1"], "--max-megapixels -1: expected a positive number"),
        ([str(example.WEIGHTS), "--threshold", "0.01"], "below the lowest threshold 0.05"),
        ([str(example.WEIGHTS), "--lowest-threshold", "0.9"], "below the lowest threshold 0.9"),
        ([str(example.WEIGHTS), "--port", "99999"], "port 99999: expected a number from 0 to 65535"),
        ([str(example.WEIGHTS), "--port", "-1"], "port -1: expected a number from 0 to 65535"),
        ([str(example.WEIGHTS), "--api-key-file", "missing.txt"], "missing.txt: the API key cannot be read"),
        ([str(example.WEIGHTS), "--classes", "circel"], "Did you mean circle?"),
    ],
)
def test_bad_input(capfd, monkeypatch, words, expected):
    monkeypatch.setattr("d2_maskrcnn.serve.server.log_as_json", lambda: None)  # it would replace pytest's handlers
    assert main(["serve", "--port", "0", *words]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and expected in error


def test_a_port_in_use(capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(example.WEIGHTS), "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another host or port" in capfd.readouterr().err


def test_an_incomplete_header_ends_the_connection(predictor):
    with serve(create_app(predictor, Settings()), http=limit_header_time(0.01)) as client:
        url = httpx.URL(client.base_url)
        for start in (b"", b"GET /hea"):
            with (
                socket.create_connection((url.host, url.port), timeout=WAIT) as connection,
                contextlib.suppress(ConnectionError),  # closed with, or even before, what was sent
            ):
                connection.sendall(start)
                assert connection.recv(1) == b""


class Connection(asyncio.Transport):
    """A connection to nowhere."""

    closed = False

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


@pytest.mark.parametrize(("start", "closed"), [(b"POST / HTTP/1.1\r\nHo", True), (HEADER, False)])
def test_the_time_limit_of_the_header_ends_with_it(start, closed):
    async def endpoint(scope, receive, send):
        await asyncio.Event().wait()

    async def send():
        config = uvicorn.Config(endpoint, http=limit_header_time(0.01), log_config=None)
        config.load()
        protocol, connection = config.http_protocol_class(config, ServerState(), {}), Connection()
        protocol.connection_made(connection)
        protocol.data_received(start)
        await asyncio.sleep(0.05)
        return connection.closed

    assert asyncio.run(send()) == closed


def test_warnings_are_json(capsys, monkeypatch):
    for name in ("", "d2_maskrcnn.serve", "uvicorn"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            log_as_json()
            warnings.warn("overflow in exp", RuntimeWarning, stacklevel=1)
        finally:
            logging.captureWarnings(False)
    line = json.loads(capsys.readouterr().err)
    assert line["logger"] == "py.warnings" and "overflow in exp" in line["message"]


def test_the_extra_is_not_installed(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi_offline", None)
    assert main(["serve", str(example.WEIGHTS)]) == 2
    assert 'pip install "d2_maskrcnn[serve]"' in capfd.readouterr().err
