"""The program ``d2-maskrcnn serve``, from its start to its end."""

import json
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from d2_maskrcnn import example
from d2_maskrcnn.cli.main import main
from tests.serve.conftest import WAIT, assert_same, wait_until

REQUESTS = 3


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


def test_the_extra_is_not_installed(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi_offline", None)
    assert main(["serve", str(example.WEIGHTS)]) == 2
    assert 'pip install "d2_maskrcnn[serve]"' in capfd.readouterr().err
