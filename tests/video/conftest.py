"""Small synthetic videos, and a tiny model with random weights."""

import functools
import http.server
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from d2_maskrcnn.cli import demo
from d2_maskrcnn.cli.main import build_parser
from tools.fuzz.tiny import NARROW_MODEL

av = pytest.importorskip("av", reason="PyAV is not installed (pip install -e '.[demo]')")

CLASS_NAMES = ["circle", "square", "triangle", "star"]
MODEL_OPTS = {
    **NARROW_MODEL,
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.DETECTIONS_PER_IMAGE": 5,
}


def frame_image(index: int, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB: the left half's brightness encodes the index, a square moves in the right half."""
    height, width = size
    image = np.full((height, width, 3), (40, 90, 160), np.uint8)
    image[:, : width // 2] = brightness(index)
    left = width // 2 + index * 2 % (width // 4)
    image[height // 4 : height // 2, left : left + height // 4] = (220, 60, 30)
    return image


def brightness(index: int) -> int:
    return 20 + index * 8 % 216


def number_of(image: np.ndarray) -> int:
    """Return the index of a frame, if it is one of the first 27."""
    half = image[image.shape[0] // 2 :, : image.shape[1] // 2 - 8].mean()
    return round((half - 20) / 8)


@pytest.fixture(scope="session")
def make_video(tmp_path_factory):
    """``make_video(frames=20, size=(64, 96), rate=10, codec="libx264", suffix=".mp4", sound=None)`` returns a path."""
    folder = tmp_path_factory.mktemp("videos")
    made: dict[tuple, Path] = {}

    def make(frames=20, size=(64, 96), rate=10, codec="libx264", suffix=".mp4", sound=None, options=None) -> Path:
        key = (frames, size, rate, codec, suffix, sound, str(options))
        if key not in made:
            made[key] = folder / f"video{len(made)}{suffix}"
            write_video(made[key], frames, size, rate, codec, sound, dict(options or ()))
        return made[key]

    return make


def write_video(path, frames, size, rate, codec, sound, options) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
        audio = container.add_stream(sound, rate=48000) if sound else None
        for index in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_image(index, size), format="rgb24")))
        container.mux(stream.encode(None))
        if audio is not None:
            write_tone(container, audio, frames / rate)


def write_tone(container, stream, seconds) -> None:
    tone = (np.sin(np.arange(int(48000 * seconds)) * 0.06) * 8000).astype(np.int16)
    for start in range(0, len(tone), 1024):
        part = tone[None, start : start + 1024]
        sound = av.AudioFrame.from_ndarray(np.repeat(part, 2, axis=1), format="s16", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48000, start, Fraction(1, 48000)
        container.mux(stream.encode(sound))
    container.mux(stream.encode(None))


def read_video(path) -> list[np.ndarray]:
    """Return all frames, (H, W, 3) uint8 RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def serve_folder():
    """``serve_folder(path)`` starts a local HTTP server for the files of a folder and returns its address."""
    servers = []

    def start(folder: Path) -> str:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory, repo_dir) -> Path:
    from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
    from d2_maskrcnn.config.loading import load_config
    from detectron2.modeling import build_model

    cfg = load_config(str(repo_dir / "configs" / "quickstart.yaml"), [str(x) for kv in MODEL_OPTS.items() for x in kv])
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    MaskRCNNCheckpointer(build_model(cfg), str(folder), class_names=CLASS_NAMES).save("tiny")
    return folder / "tiny.pth"


@pytest.fixture(scope="session")
def demo_args(tiny_weights, repo_dir):
    """``demo_args("--input", ...)`` adds the tiny model to the arguments."""

    def build(*args) -> list[str]:
        opts = [str(x) for kv in MODEL_OPTS.items() for x in kv]
        config = ["--config-file", str(repo_dir / "configs" / "quickstart.yaml"), "--confidence-threshold", "0.15"]
        return [*map(str, args), *config, "--opts", *opts, "MODEL.WEIGHTS", str(tiny_weights)]

    return build


@pytest.fixture
def run_demo(demo_args):
    """Run the demo in this process."""

    return lambda *args: demo.run(build_parser(demo, "demo.py").parse_args(demo_args(*args)))


@pytest.fixture
def start_demo(demo_args, repo_dir):
    """Start demo.py in a new process, which is killed at the end of the test."""
    started = []

    def start(*args) -> subprocess.Popen:
        command = [sys.executable, str(repo_dir / "demo.py"), *demo_args(*args)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
