"""Cameras and streams: a camera that plays a file, and streams from a local server."""

import http.server
import itertools
import threading
import time

import cv2
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.sources import camera
from d2_maskrcnn.video.sources.video import VideoSource
from tests.video.conftest import number_of, read_video
from tests.video.rtsp_server import RtspServer


@pytest.fixture
def webcam(make_video, monkeypatch):
    """Camera 1 plays a video and is unplugged at its end; there is no other camera."""
    path, real = str(make_video()), cv2.VideoCapture
    monkeypatch.setattr(camera.cv2, "VideoCapture", lambda number: real(path if number == 1 else "/nowhere"))
    monkeypatch.setattr(camera, "PAUSE", 0.001)


def test_no_such_camera(webcam):
    with pytest.raises(UserError, match="Camera 0: not connected"):
        camera.CameraSource(0)


def test_a_camera_until_it_is_unplugged(webcam):
    source, numbers = camera.CameraSource(1), []
    assert source.info.live and source.info.rate == 10
    with pytest.raises(UserError, match="after 20 frames; was it unplugged"):
        for frame in source:
            numbers.append(number_of(frame.image[:, :, ::-1]))
    assert numbers == list(range(20))


def test_a_clip_of_a_camera(webcam):
    source = camera.CameraSource(1, Clip(Position(2, False), Position(9, False), 3))
    assert [frame.index for frame in source] == [3, 6]


class Server(http.server.ThreadingHTTPServer):
    """Send one of ``parts`` of a stream per connection, then respond with 404."""

    daemon_threads = True
    parts: list[tuple[bytes, float]]  # data, and seconds for which the connection then stalls
    connections: "itertools.count[int]"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        number = next(self.server.connections)
        if number >= len(self.server.parts):
            self.send_error(404)
            return
        data, stall = self.server.parts[number]
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        time.sleep(stall)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*parts: tuple[bytes, float]) -> str:
        server = Server(("127.0.0.1", 0), Handler)
        server.parts, server.connections = list(parts), itertools.count()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/stream"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def stream(make_video) -> bytes:
    return make_video(frames=60, codec="mpeg2video", rate=25, suffix=".ts").read_bytes()


def test_no_server():
    with pytest.raises(UserError, match="cannot be opened"):
        VideoSource("http://127.0.0.1:9/stream", timeout=2)


def test_a_stream_that_ends(serve, stream):
    source = VideoSource(serve((stream, 0), (stream, 0)), timeout=2, reconnects=1)
    assert source.info.live and source.info.frames is None
    frames = []
    with pytest.raises(UserError, match="gave up after 1 reconnect"):
        for frame in source:
            frames.append(frame)
    assert [f.index for f in frames] == list(range(len(frames))) and len(frames) >= 55


def test_a_stalled_stream_is_reconnected(serve, stream, caplog):
    """The first connection reads the stream's format, the second stalls in the middle, the third continues."""
    source = VideoSource(serve((stream, 0), (stream[: len(stream) // 2], 30), (stream, 0)), timeout=1, reconnects=1)
    frames = []
    with pytest.raises(UserError, match="gave up"):
        for frame in source:
            frames.append(frame)
    assert "no data arrived in time); reconnecting" in caplog.text
    assert len(frames) > 70  # about half of the stream, then all of it
    assert [f.index for f in frames] == list(range(len(frames)))
    assert all(a.time <= b.time for a, b in itertools.pairwise(frames))


@pytest.fixture
def rtsp(stream):
    servers = []

    def start(*parts: tuple[bytes, float]) -> str:
        servers.append(RtspServer(list(parts)))
        return servers[-1].address

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_stalled_rtsp_camera_is_reconnected(rtsp, stream, caplog):
    half = stream[: len(stream) // 188 // 2 * 188]
    source = VideoSource(rtsp((stream, 30), (half, 30), (stream, 0)), timeout=1, reconnects=1)
    assert source.info.live and source.info.frames is None
    frames = []
    with pytest.raises(UserError, match=r"Stream rtsp://\S+: .* gave up after 1 reconnect"):
        for frame in source:
            frames.append(frame)
    assert len(frames) > 70 and "no data arrived in time" in caplog.text
    assert frames[0].image.shape == (64, 96, 3)


def test_an_rtsp_camera_is_recorded(run_demo, rtsp, stream, tmp_path):
    outputs = ["--output", tmp_path, "--save-json", tmp_path / "r.jsonl"]
    run_demo("--video-input", rtsp((stream, 0), (stream, 0)), "--timeout", "2", "--end", "40", *outputs)
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(read_video(tmp_path / "camera.mp4")) == len(lines) > 0


def test_a_file_on_a_server_is_not_live(make_video, serve_folder):
    """Python's server only sends whole files, and the index of this one is at its end, so it is downloaded first."""
    source = VideoSource(f"{serve_folder(make_video().parent)}/{make_video().name}", timeout=5)
    assert not source.info.live and source.info.frames == 20
    assert len(list(source)) == 20 and source.problem == ""


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serve byte ranges of a file; for each of ``stalls`` a response stops in the middle for that many seconds."""

    protocol_version = "HTTP/1.1"
    data: bytes
    stalls: list[float]

    def do_GET(self) -> None:
        begin = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.send_response(206)
        self.send_header("Content-Length", str(len(self.data) - begin))
        self.send_header("Content-Range", f"bytes {begin}-{len(self.data) - 1}/{len(self.data)}")
        self.end_headers()
        middle = len(self.data) // 2
        if begin >= middle or not self.stalls:
            self.wfile.write(self.data[begin:])
            return
        self.wfile.write(self.data[begin:middle])
        self.wfile.flush()
        time.sleep(self.stalls.pop())
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("stall", [0.0, 30.0], ids=["cut", "stalled"])
def test_an_interrupted_download_is_resumed(make_video, stall):
    data = make_video(frames=25, size=(240, 320), options=(("movflags", "+faststart"),)).read_bytes()
    handler = type("Handler", (RangeHandler,), {"data": data, "stalls": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = VideoSource(f"http://127.0.0.1:{server.server_address[1]}/v.mp4", timeout=1)
        handler.stalls.append(stall)
        assert len(list(source)) == 25 and source.problem == "" and not handler.stalls
        server.shutdown()
