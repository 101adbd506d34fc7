import http.server
import threading

import pytest

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler, PathHandler, PathManager


def test_local_files(tmp_path):
    path = str(tmp_path / "deep" / "file.txt")
    assert not PathManager.exists(path)
    PathManager.mkdirs(str(tmp_path / "deep"))
    with PathManager.open(path, "w") as file:
        file.write("x")
    assert PathManager.isfile(path) and PathManager.ls(str(tmp_path)) == ["deep"]
    assert PathManager.get_local_path(path) == path


@pytest.fixture
def server(tmp_path):
    """The address of a local web server that counts requests."""
    folder = tmp_path / "served" / "models"
    folder.mkdir(parents=True)
    (folder / "a.pkl").write_bytes(b"weights")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    # What has been fetched is remembered by address, and every test's server has one of its own.
    return tmp_path / "cache"


def test_download_is_cached(server, cache):
    address, asked = server
    for _ in range(2):
        local = PathManager.get_local_path(address + "models/a.pkl")
        assert local.startswith(str(cache))
        with open(local, "rb") as file:
            assert file.read() == b"weights"
    assert asked == ["/models/a.pkl"]


def test_model_zoo_addresses(server, cache, monkeypatch):
    address, asked = server
    monkeypatch.setattr(Detectron2Handler, "ZOO_ADDRESS", address)
    with PathManager.open("detectron2://models/a.pkl", "rb") as file:
        assert file.read() == b"weights"
    assert PathManager.isfile("detectron2://models/a.pkl")
    assert not PathManager.isdir("detectron2://models")
    assert asked == ["/models/a.pkl"]


def test_model_zoos_real_address():
    assert Detectron2Handler()._address("detectron2://ImageNetPretrained/MSRA/R-101.pkl") == (
        "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-101.pkl"
    )


def test_handlers_of_ones_own(tmp_path):
    class Handler(PathHandler):
        def _get_supported_prefixes(self):
            return ["own-test://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(tmp_path / path.removeprefix("own-test://"))

    PathManager.register_handler(Handler())
    assert PathManager.get_local_path("own-test://x") == str(tmp_path / "x")


def test_backbones_of_the_catalog():
    address = "https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/47261647/R-50-GN.pkl"
    assert ModelCatalog.get("ImageNetPretrained/FAIR/R-50-GN") == address
    with pytest.raises(RuntimeError, match="ImageNetPretrained/MSRA/R-50"):
        ModelCatalog.get("ImageNetPretrained/Nobody/R-51")
