"""Real downloads from a server on the loopback interface."""

import functools
import http.server
import io
import os
import pickle
import socket
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights import download
from d2_maskrcnn.weights.download import cached_path, fetch_weights, is_remote
from d2_maskrcnn.weights.readers import read_weights


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /truncated/x is half of x, /part/x half without a length, /moved/x a redirection to x."""

    def log_message(self, *args):
        self.server.requests.append(self.path)

    def do_GET(self):
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind in ("redirect", "moved", "ftp"):
            self.send_response(302)
            self.send_header("Location", {"redirect": "", "moved": "/", "ftp": "ftp://127.0.0.1/"}[kind] + name)
            self.end_headers()
            return None
        if kind not in ("truncated", "part"):
            return super().do_GET()
        content = Path(self.directory, name).read_bytes()
        self.send_response(200)
        if kind == "truncated":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True


class Code:
    """Pickles to a call that creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def torch_archive(content):
    """A torch file whose ``data.pkl`` is ``content``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", content)
        archive.writestr("model/version", "3\n")
    return stream.getvalue()


@pytest.fixture
def serve(tmp_path):
    """``serve(number)``: a server whose model.pth is filled with ``number``."""
    running = []

    def start(number=0.0):
        folder = tmp_path / f"served{len(running)}"
        folder.mkdir()
        torch.save({"model": {"w": torch.full((5000,), float(number))}}, folder / "model.pth")
        (folder / "login.pkl").write_text("<html>please sign in</html>")
        (folder / "empty.pth").write_bytes(b"")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        server.requests = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def kept(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("path", "expected"),
    [("", False), ("a.pth", False), ("/a/b.pth", False), ("detectron2://a.pkl", True), ("https://x/a.pth", True)],
)
def test_is_remote(path, expected):
    assert is_remote(path) is expected


def test_local_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch_weights("/none/x.pth") == "/none/x.pth"
    assert fetch_weights("~/x.pth") == str(tmp_path / "x.pth")


def test_a_download_is_kept_and_used_again(server, cache):
    address = server.address + "/model.pth"
    local = fetch_weights(address)
    assert local == str(cached_path(address)) and kept(cache) == ["model.pth"]
    assert read_weights(local)["model"]["w"].shape == (5000,)
    assert fetch_weights(address) == local
    assert len(server.requests) == 1


def test_addresses_that_differ_anywhere_have_files_of_their_own(serve, cache):
    first, second = serve(1), serve(2)
    for server, number in ((first, 1), (second, 2)):
        assert read_weights(fetch_weights(server.address + "/model.pth"))["model"]["w"][0] == number
    addresses = [f"{s}://h{p}/d/m.pth{q}" for s in ("http", "https") for p in ("", ":81") for q in ("", "?v=1", "?v=2")]
    addresses += ["http://h/m.pth", "http://h/d%2Fm.pth", "http://h/d/m%2Epth", "http://other/d/m.pth"]
    assert len({cached_path(address) for address in addresses}) == len(addresses)


@pytest.mark.parametrize(
    "address",
    [
        "detectron2://../../x.pkl",
        "detectron2://a/../../../../../x.pkl",
        "https://host/../../../x.pth",
        "https://host/a/./x.pth",
        "https://host//etc/x.pth",
        "https://../x.pth",
        "https://host/a\\..\\x.pth",
        "https://host/a/",
        "https://host",
        "detectron2://",
        "https:///etc/passwd",
        "https://host:99999/x.pth",
        "https://host/a\x1bb.pth",
    ],
)
def test_no_address_leaves_the_cache(address, cache):
    with pytest.raises(UserError, match=r"Cannot download|not a valid address"):
        fetch_weights(address)
    assert kept(cache) == []


@pytest.mark.parametrize("address", ["nonsense://x/y.pth", "file:///etc/passwd", "ftp://h/x.pth", "http://"])
def test_other_schemes(address):
    with pytest.raises(UserError, match=r"Cannot download .*: give a local file, or an http://"):
        fetch_weights(address)


def test_a_redirection_to_a_local_file(server, cache, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "secret.pth")
    with pytest.raises(UserError, match="Cannot download"):
        fetch_weights(f"{server.address}/redirect/file://{tmp_path}/secret.pth")
    assert kept(cache) == []


def test_a_redirection_to_another_protocol(server):
    with pytest.raises(UserError, match=r"it is redirected to 'ftp://127\.0\.0\.1/model\.pth'"):
        fetch_weights(f"{server.address}/ftp/model.pth")


@pytest.mark.parametrize("wrap", [lambda code: code, lambda code: torch_archive(code)], ids=["pickle", "archive"])
def test_a_file_with_code_is_not_kept(server, cache, tmp_path, wrap):
    code = pickle.dumps({"model": {"w": Code(str(tmp_path / "created"))}}, protocol=2)
    (tmp_path / "served0" / "code.pth").write_bytes(wrap(code))
    with pytest.raises(UserError, match=r"the response was discarded: .* refused, no code in it was run"):
        fetch_weights(f"{server.address}/code.pth")
    assert not (tmp_path / "created").exists()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("address", ["http://h\n.example/x.pth", "http://h/a\tb.pth"])
def test_control_characters(address):
    with pytest.raises(UserError, match=r"is not a valid address \(it contains control characters"):
        fetch_weights(address)


def test_a_redirection(server):
    assert read_weights(fetch_weights(f"{server.address}/moved/model.pth"))


def test_an_endless_redirection(server):
    with pytest.raises(UserError, match="infinite loop") as info:
        fetch_weights(f"{server.address}/redirect/model.pth")
    assert "\n" not in str(info.value)


def test_a_response_of_404(server, cache):
    address = server.address + "/sub/none.pth"
    with pytest.raises(UserError, match=r"Cannot download .*none\.pth: HTTP 404 .*not found") as info:
        fetch_weights(address)
    message = str(info.value)
    assert str(cached_path(address)) in message and "MODEL.WEIGHTS" in message and "\n" not in message
    assert kept(cache) == []


def test_no_server(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"Connection refused.*put the file at .*cache/http/127.*/a/b\.pth"):
        fetch_weights(f"http://127.0.0.1:{port}/a/b.pth")
    assert kept(cache) == []


def test_no_response(cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="timed out"):
        fetch_weights(f"http://127.0.0.1:{silent.getsockname()[1]}/b.pth")
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("truncated/model.pth", r"ended after \d+ of \d+ bytes"),
        ("part/model.pth", "truncated or damaged"),
        ("login.pkl", "a web page"),
        ("empty.pth", "empty"),
    ],
)
def test_incomplete_files_are_not_kept(server, cache, page, reason):
    address = f"{server.address}/{page}"
    for _ in range(2):  # nor is one used by a second try
        with pytest.raises(UserError, match=reason) as info:
            fetch_weights(address)
        assert str(cached_path(address)) in str(info.value)
    assert kept(cache) == [] and len(server.requests) == 2


def test_a_cache_that_cannot_be_written(server, cache):
    cache.write_text("a file, not a folder")
    with pytest.raises(UserError, match="Cannot download"):
        fetch_weights(server.address + "/model.pth")


def test_a_name_that_is_too_long(cache):
    with pytest.raises(UserError, match="File name too long"):
        fetch_weights(f"https://host/{'a' * 300}.pth")


def test_the_file_can_be_put_there_by_hand(cache):
    path = cached_path("detectron2://ImageNetPretrained/MSRA/R-101.pkl")
    assert path == cache / "https/dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-101.pkl"
    path.parent.mkdir(parents=True)
    torch.save({"w": torch.ones(2)}, path)
    assert fetch_weights("detectron2://ImageNetPretrained/MSRA/R-101.pkl") == str(path)


def test_what_a_killed_download_left_is_removed(server, cache):
    address = server.address + "/model.pth"
    folder = cached_path(address).parent
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    (folder / f".model.pth.{pid}.tmp").write_bytes(b"part")
    fetch_weights(address)
    assert kept(cache) == ["model.pth"]
