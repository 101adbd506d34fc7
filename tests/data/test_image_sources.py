"""Images from web servers, folders and memory."""

import http.server
import socket
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import UserError, example
from d2_maskrcnn.data import image_sources
from d2_maskrcnn.data.image_sources import check_several, list_images, load_image, load_images

CONTENT = example.IMAGES[0].read_bytes()
GARBAGE = b"garbage\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "ok": HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT,
    "without-length": HEAD + b"\r\n" + CONTENT,
    "html": HEAD + b"\r\n<html>",
    "empty": HEAD + b"Content-Length: 0\r\n\r\n",
    "short": HEAD + b"Content-Length: %d\r\n\r\n" % len(CONTENT) + CONTENT[:-9],
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n800\r\n" + CONTENT[:100],
    "garbage": GARBAGE,
    "nothing": b"",
    "long": HEAD + b"X: " + b"a" * 70_000 + b"\r\n\r\n",
    "loop": b"HTTP/1.1 302 Found\r\nLocation: loop\r\n\r\n",
    "ftp": b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/a.jpg\r\n\r\n",
    "file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
    "my%20photo%C3%BC": HEAD + b"\r\n" + CONTENT,
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the bytes of ``ANSWERS`` and ends the connection."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.wfile.write(ANSWERS.get(self.path.lstrip("/"), b"HTTP/1.1 404 Not Found\r\n\r\n"))
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.close_connection = True


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_addresses_that_name_an_image(address):
    expected = load_image(example.IMAGES[0])
    for name in ("ok", "without-length", "my photoü"):
        assert np.array_equal(load_image(f"{address}/{name}"), expected)
    assert np.array_equal(load_image(f"{address.upper()}/ok\n"), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("html", "not a readable image"),
        ("empty", "not a readable image"),
        ("short", "the connection ended 9 bytes before the end"),
        ("chunked", "the connection ended before the file"),
        ("garbage", "does not answer in HTTP"),
        ("nothing", "closed connection|reset"),
        ("long", "more than 65536 bytes"),
        ("loop", r"infinite loop.\)\.$"),
        ("ftp", "it is redirected to 'ftp"),
        ("file", "redirected to|Redirection to"),
    ],
)
def test_failed_downloads_name_the_address(address, name, reason):
    with pytest.raises(UserError, match=f"^{address}/{name}: .*({reason})"):
        load_image(f"{address}/{name}")


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:abc/a.jpg", "http://[::1/a.jpg", "http://a..b/a.jpg"])
def test_malformed_addresses(url):
    with pytest.raises(UserError, match="download failed"):
        load_image(url)


def test_downloads_have_limits(address, monkeypatch):
    monkeypatch.setattr(image_sources, "DOWNLOAD_SECONDS", -1.0)
    with pytest.raises(UserError, match="not complete after -1 seconds"):
        load_image(f"{address}/ok")
    monkeypatch.setattr(image_sources, "MAX_DOWNLOAD", 100)
    with pytest.raises(UserError, match="more than 0 MB"):
        load_image(f"{address}/ok")


def test_failed_downloads_of_a_list_are_skipped(address, caplog):
    sources = [f"{address}/{name}" for name in ("garbage", "ok", "html")]
    assert [name for _, name in load_images(sources)] == [f"{address}/ok"]
    assert f"{address}/html: not a readable image" in caplog.text and "does not answer in HTTP" in caplog.text


def test_memory_that_is_used_again():
    def frames():
        buffer, tensor = np.zeros((4, 5, 3), np.uint8), torch.zeros((3, 4, 5), dtype=torch.uint8)
        for number in range(4):
            buffer[:], tensor[:] = number, number + 100
            yield buffer
            yield tensor

    values = [int(image.max()) for image, _ in load_images(frames(), ahead=8)]
    assert values == [0, 100, 1, 101, 2, 102, 3, 103]
    image = np.zeros((4, 5, 3), np.uint8)
    loaded = load_image(image)
    image[:] = 9
    assert loaded.max() == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros((3, 4, 4), dtype=torch.bfloat16), "type torch.bfloat16.* Scale its values"),
        (torch.zeros((3, 4, 4), dtype=torch.uint8).to_sparse(), "dense tensor"),
        (torch.zeros((3, 4, 4), dtype=torch.uint8, device="meta"), "dense tensor"),
        (torch.zeros((2, 3, 4, 4), dtype=torch.uint8), "as a list"),
        (np.zeros((4, 4, 4), np.uint8), "alpha channel"),
        (np.zeros((4, 4, 3), np.uint16), "Scale its values"),
        (np.array(7), "an .H, W, 3."),
        (Image.new("RGB", (0, 5)), "with pixels"),
    ],
)
def test_bad_images_in_memory(source, message):
    with pytest.raises(UserError, match=message):
        load_image(source)


def test_pillow_images_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(CONTENT[:1000])
    with Image.open(path) as image, pytest.raises(UserError, match=r"cut\.jpg: not a readable image, corrupt or trunc"):
        load_image(image)
    closed = Image.open(example.IMAGES[0])
    closed.close()
    with pytest.raises(UserError, match="closed"):
        load_image(closed)
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 500
    with pytest.raises(UserError, match="palette index"):
        load_image(palette)


def test_values_of_raw_tensors_are_unchanged():
    for dtype in (torch.bfloat16, torch.float16, torch.int32):
        image = torch.arange(40).reshape(2, 4, 5).to(dtype)
        assert np.array_equal(load_image(image, raw_channels=2), image.float().numpy().transpose(1, 2, 0))
    assert load_image(np.zeros((2, 2), np.uint8).view(np.matrix)).shape == (2, 2, 3)


def test_what_does_not_list_images():
    check_several([])
    check_several(iter([]))
    with example.IMAGES[0].open("rb") as file, pytest.raises(UserError, match="an open file"):
        check_several(file)
    for source in (None, 5, b"abc", {"image": 1}):
        with pytest.raises(UserError, match="Expected an image, a path, a URL or a list"):
            check_several(source)


def test_names_that_no_file_can_have(tmp_path):
    assert list_images("a" * 300 + ".jpg") is None
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        list_images(tmp_path)
