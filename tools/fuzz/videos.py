"""Video files: containers, clocks, tracks, playlists and bytes. Frames must come in order, and what is lost is said."""

import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.sources.video import VideoSource
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage

COUNT = 80
FRAMES, WIDTH, HEIGHT = 12, 64, 48
FORMATS = ("mp4", "mkv", "avi", "mov", "ts", "flv")
PLAYLISTS = (
    b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile /etc/passwd\n",
    b"ffconcat version 1.0\nfile a.mp4\n",
    b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    b"<MPD><Period/></MPD>",
    b"hello",
    b"",
)


def prepare(folder: Path) -> None:
    """Write an intact file of each format."""
    for suffix in FORMATS:
        write(folder / f"a.{suffix}", [Fraction(number, 10) for number in range(FRAMES)])


def write(path: Path, times: list[Fraction], still: bool = False) -> None:
    """Write frames whose gray level is 20 times their number; with ``still``, after a track of one small image."""
    with av.open(f"file:{path}", "w") as container:
        streams: list[Any] = []
        if still:
            cover = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            streams.append(cover)
        stream = container.add_stream("libx264" if path.suffix != ".avi" else "mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.max_b_frames = 0
        if still:
            stream.disposition = av.stream.Disposition.default
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 250, np.uint8), format="rgb24")
            container.mux(streams[0].encode(image.reformat(format="yuvj420p")))
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), int(time * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Write an intact file, one with odd times, a damaged one, a playlist, or something that is not a file."""
    action = rng.choice(("intact", "times", "still", "name", "clip", "bytes", "bytes", "bytes", "playlist", "no file"))
    suffix = rng.choice(FORMATS)
    path = folder / f"a.{suffix}"
    path.write_bytes((shared / f"a.{suffix}").read_bytes())
    if action == "bytes":
        label, content = damage(rng, path.read_bytes())
        path.write_bytes(content)
        return Input(f"{suffix}: {label}", lambda: check_any(path))
    if action == "playlist":
        text = rng.choice(PLAYLISTS)
        path.write_bytes(text)
        return Input(f"{suffix}: {text[:50]!r}", lambda: expect(_read(path) is None, "a playlist was read as a video"))
    if action == "no file":
        return _no_file(rng, path)
    numbers = list(range(FRAMES))
    clip = None
    if action == "times":
        start, gap = rng.choice((0, 5, 1000)), rng.choice((0, 3))
        write(path, [Fraction(start) + Fraction(n + gap * (n > 5), 10) for n in range(FRAMES)])
    elif action == "still":
        path = folder / "two.mkv"
        write(path, [Fraction(n, 10) for n in range(FRAMES)], still=True)
    elif action == "name":
        path = path.rename(
            folder / rng.choice((f"10:30.{suffix}", f"-a.{suffix}", f"ä %d ☃.{suffix}", f"concat:a.{suffix}", "x"))
        )
    elif action == "clip":
        first, last, stride = rng.randrange(0, 8), rng.randrange(9, 20), rng.choice((1, 2, 5, 100))
        clip, numbers = Clip(Position(first, False), Position(last, False), stride), numbers[first:last:stride]
    return Input(f"{suffix}: {action} {path.name}", lambda: check_frames(path, numbers, clip))


def _read(path: Path, clip: Clip | None = None) -> tuple[list[Any], VideoSource] | None:
    source = VideoSource(str(path), clip, timeout=5)
    return list(source), source


def check_any(path: Path) -> tuple[list[Any], str]:
    """Check the properties of every file: increasing times, and a problem where frames are missing."""
    read = _read(path)
    assert read is not None
    frames, source = read
    times = [frame.time for frame in frames]
    expect(times == sorted(set(times)) and np.isfinite(times).all() and min(times) >= 0, f"times {times}")
    expect(all(frame.image.dtype == np.uint8 and frame.image.ndim == 3 for frame in frames), "not images")
    expect("\n" not in source.problem, "a problem of several lines")
    return frames, source.problem


def check_frames(path: Path, numbers: list[int], clip: Clip | None) -> None:
    """Check the frames of an intact file."""
    read = _read(path, clip)
    assert read is not None
    frames, source = read
    expect(source.problem == "", f"an intact file has a problem: {source.problem}")
    levels = [round(float(frame.image.mean()) / 20) for frame in frames]
    expect(levels == numbers, f"frames {levels}, expected {numbers}")
    expect([frame.index for frame in frames] == numbers, f"indices {[frame.index for frame in frames]}")
    times = [frame.time for frame in frames]
    expect(times == sorted(set(times)), f"times {times}")


def _no_file(rng: random.Random, path: Path) -> Input:
    kind = rng.choice(("FIFO", "folder", "missing", "device"))
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")

    def check() -> None:
        try:
            _read(path)
        except UserError:
            return
        expect(False, "it was read")

    return Input(kind, check)
