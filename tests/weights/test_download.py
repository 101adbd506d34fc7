"""Real downloads from a server of our own on the loopback interface."""

import functools
import http.server
import socket
import threading
from pathlib import Path

import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights import download
from d2_maskrcnn.weights.download import cached_path, fetch_weights, is_remote
from d2_maskrcnn.weights.readers import read_weights


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; under /truncated/ only half of what it announces, under /part/ half without announcing."""

    def log_message(self, *args):
        self.server.requests.append(self.path)

    def do_GET(self):
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind not in ("truncated", "part"):
            return super().do_GET()
        content = Path(self.directory, name).read_bytes()
        self.send_response(200)
        if kind == "truncated":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save({"model": {"w": torch.rand(5000)}}, folder / "model.pth")
    (folder / "login.pkl").write_text("<html>please sign in</html>")
    (folder / "empty.pth").write_bytes(b"")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.address = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def kept(cache):
    """What is in the cache but iopath's locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", False), ("a.pth", False), ("/a/b.pth", False), ("detectron2://a.pkl", True), ("https://x/a.pth", True)],
)
def test_is_remote(path, expected):
    assert is_remote(path) is expected


def test_a_local_path_is_given_back(tmp_path):
    assert fetch_weights(str(tmp_path / "none.pth")) == str(tmp_path / "none.pth")


def test_a_download_is_kept_and_used_again(server, cache):
    address = server.address + "/model.pth"
    local = fetch_weights(address)
    assert local == str(cached_path(address)) and kept(cache) == ["model.pth"]
    assert read_weights(local)["model"]["w"].shape == (5000,)
    assert fetch_weights(address) == local
    assert len(server.requests) == 1


def test_an_answer_of_404(server, cache):
    address = server.address + "/sub/none.pth"
    with pytest.raises(UserError, match=r"Cannot download .*none\.pth: HTTP 404 .*not found") as info:
        fetch_weights(address)
    message = str(info.value)
    assert str(cache / "sub" / "none.pth") in message and "MODEL.WEIGHTS" in message and "\n" not in message
    assert kept(cache) == []


def test_no_server(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"Connection refused.*put the file at .*cache/a/b\.pth"):
        fetch_weights(f"http://127.0.0.1:{port}/a/b.pth")
    assert kept(cache) == []


def test_no_answer(cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timed out"):
        fetch_weights(f"http://127.0.0.1:{silent.getsockname()[1]}/b.pth")
    assert kept(cache) == [] and socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("truncated/model.pth", r"retrieval incomplete|IncompleteRead"),
        ("part/model.pth", "truncated or damaged"),
        ("login.pkl", "a web page"),
        ("empty.pth", "empty"),
    ],
)
def test_what_is_not_whole_is_not_kept(server, cache, page, reason):
    address = f"{server.address}/{page}"
    for _ in range(2):  # nor does a second try find it
        with pytest.raises(UserError, match=reason) as info:
            fetch_weights(address)
        assert str(cached_path(address)) in str(info.value)
    assert kept(cache) == [] and len(server.requests) == 2


def test_the_file_can_be_put_there_by_hand(cache):
    path = cached_path("detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    assert path == cache / "detectron2" / "ImageNetPretrained" / "MSRA" / "R-101.pkl"
    path.parent.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, path)
    assert fetch_weights("detectron2://ImageNetPretrained/MSRA/R-101.pkl") == str(path)


@pytest.mark.parametrize("address", ["nonsense://x/y.pth", "http://"])
def test_addresses_that_nobody_can_fetch(address):
    with pytest.raises(UserError, match=r"(No way to|Cannot) download"):
        fetch_weights(address)
