"""Audio of written videos: when it begins and ends, and its codec."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest

from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.sinks.video_file import VideoWriter
from d2_maskrcnn.video.sources.video import VideoSource
from tests.video.conftest import frame_image, read_video

RATE = 48000


def copy(source, path) -> None:
    with VideoWriter(path, source.info) as writer:
        for frame in source:
            writer.write(frame)


def loudness(path) -> np.ndarray:
    """Return the root mean square of each 10 ms of audio, from the time of the first frame."""
    with av.open(str(path)) as container:
        begin = next(container.decode(video=0)).time
        container.seek(0)
        parts, mono = [], av.AudioResampler(format="flt", layout="mono", rate=RATE)
        for sound in container.decode(audio=0):
            parts += [(part.time - begin, part.to_ndarray()[0]) for part in mono.resample(sound)]
    samples = np.zeros(round((parts[-1][0] + 1) * RATE))
    for time, values in parts:
        at = round(time * RATE)
        samples[max(0, at) : at + len(values)] = values[max(0, -at) :]
    return np.sqrt((samples[: len(samples) // 480 * 480].reshape(-1, 480) ** 2).mean(axis=1))


def audible_range(path) -> tuple[float, float]:
    """Return when the sound begins and ends, in seconds."""
    loud = np.flatnonzero(loudness(path) > 0.02)
    return loud[0] / 100, (loud[-1] + 1) / 100


def write_av(path, codec, *, first_frame=0.0, sound=(0.0, 3.0), seconds=3.0, rate=RATE, layout="stereo") -> str:
    """Write video of 10 frames per second from time ``first_frame``, and a tone during ``sound``; times in seconds."""
    with av.open(str(path), "w") as container:
        # AVI files store no time stamps, and readers guess them wrongly for H.264.
        video = container.add_stream("mpeg4" if str(path).endswith(".avi") else "libx264", rate=10)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        audio = container.add_stream(codec, rate=rate)
        audio.codec_context.layout = layout
        channels = audio.codec_context.channels
        tone = np.tile(np.sin(np.arange(int((sound[1] - sound[0]) * rate)) * 0.3).astype(np.float32), (channels, 1)) / 3
        packets = []
        for index in range(round(seconds * 10)):
            image = av.VideoFrame.from_ndarray(frame_image(index, (64, 96)), format="rgb24")
            image.pts, image.time_base = round((first_frame + index / 10) * 10), Fraction(1, 10)
            packets += video.encode(image)
        packets += video.encode(None)
        for start in range(0, tone.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(np.ascontiguousarray(tone[:, start : start + 1024]), "fltp", layout)
            part.sample_rate, part.time_base = rate, Fraction(1, rate)
            part.pts = start + round(sound[0] * rate)
            packets += audio.encode(part)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return str(path)


@pytest.mark.parametrize(
    ("codec", "suffix", "copied"),
    [
        ("aac", ".mp4", True),
        ("aac", ".ts", True),
        ("libmp3lame", ".avi", True),
        ("libmp3lame", ".mp4", True),
        ("pcm_s16le", ".mov", False),
        ("ac3", ".mkv", False),
        ("flac", ".mkv", False),
        ("libopus", ".mkv", False),
    ],
)
def test_audio_is_kept_from_beginning_to_end(tmp_path, codec, suffix, copied):
    copy(VideoSource(write_av(tmp_path / f"source{suffix}", codec)), tmp_path / "v.mp4")
    begin, end = audible_range(tmp_path / "v.mp4")
    assert begin < 0.06 and end == pytest.approx(3, abs=0.06)
    with av.open(str(tmp_path / "v.mp4")) as container:
        name = container.streams.audio[0].codec_context.codec.canonical_name
    assert name == ("mp3" if copied and "mp3" in codec else "aac")


@pytest.mark.parametrize(("rate", "layout"), [(8000, "mono"), (96000, "stereo"), (48000, "5.1"), (37800, "stereo")])
def test_other_sample_rates_and_layouts(tmp_path, rate, layout):
    copy(VideoSource(write_av(tmp_path / "source.mkv", "pcm_s16le", rate=rate, layout=layout)), tmp_path / "v.mp4")
    begin, end = audible_range(tmp_path / "v.mp4")
    assert begin < 0.06 and end == pytest.approx(3, abs=0.06)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_audio_and_video_that_begin_at_different_times_stay_in_sync(tmp_path, codec):
    late = write_av(tmp_path / "late.mkv", codec, first_frame=0.0, sound=(1.0, 3.0))
    copy(VideoSource(late), tmp_path / "v1.mp4")
    assert audible_range(tmp_path / "v1.mp4")[0] == pytest.approx(1, abs=0.06)
    early = write_av(tmp_path / "early.mkv", codec, first_frame=1.0, sound=(0.0, 2.0))
    copy(VideoSource(early), tmp_path / "v2.mp4")
    begin, end = audible_range(tmp_path / "v2.mp4")
    assert begin < 0.06 and end == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize("start", [Position(1, True), Position(10, False)])
def test_audio_of_a_clip(tmp_path, codec, start):
    source = write_av(tmp_path / "source.mkv", codec, sound=(1.5, 3.0))
    copy(VideoSource(source, Clip(start, Position(2.5, True))), tmp_path / "v.mp4")
    begin, end = audible_range(tmp_path / "v.mp4")
    assert begin == pytest.approx(0.5, abs=0.06) and end == pytest.approx(1.5, abs=0.06)


def test_audio_of_a_clip_late_in_the_video(tmp_path):
    source = write_av(tmp_path / "source.mp4", "aac", seconds=30, sound=(20.5, 30.0))
    copy(VideoSource(source, Clip(Position(20, True), Position(22, True))), tmp_path / "v.mp4")
    begin, end = audible_range(tmp_path / "v.mp4")
    assert begin == pytest.approx(0.5, abs=0.06) and end == pytest.approx(2, abs=0.06)


def test_gaps_become_silence(tmp_path):
    """PCM packets in the middle are lost; the later ones keep their times."""
    path = write_av(tmp_path / "whole.mkv", "pcm_s16le")
    with av.open(path) as whole, av.open(str(tmp_path / "gap.mkv"), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in whole.streams}
        for packet in whole.demux():
            lost = packet.stream.type == "audio" and 1 < float((packet.pts or 0) * packet.time_base) < 2
            if packet.size and not lost:
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    copy(VideoSource(str(tmp_path / "gap.mkv")), tmp_path / "v.mp4")
    loud = loudness(tmp_path / "v.mp4")
    assert loud[110:190].max() < 0.02 and loud[20:90].min() > 0.1 and loud[210:290].min() > 0.1


@pytest.mark.parametrize("codec", ["flac", "aac"])
def test_damaged_audio_does_not_stop_the_video(tmp_path, codec):
    path = tmp_path / "source.mkv"
    data = bytearray((tmp_path / write_av(path, codec)).read_bytes())
    source = VideoSource(str(path))
    for at in range(len(data) // 3, len(data), 97):
        data[at] ^= 0x55
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data)
    source.info = dataclasses.replace(source.info, audio_from=str(broken))
    copy(source, tmp_path / "v.mp4")
    assert len(read_video(tmp_path / "v.mp4")) == 30


def test_missing_audio_file(tmp_path, caplog):
    source = VideoSource(write_av(tmp_path / "source.mkv", "aac"))
    source.info = dataclasses.replace(source.info, audio_from=str(tmp_path / "none.mkv"))
    copy(source, tmp_path / "v.mp4")
    assert len(read_video(tmp_path / "v.mp4")) == 30 and "is left out" in caplog.text


def test_audio_of_a_video_on_a_server_on_a_server(tmp_path, serve_folder):
    write_av(tmp_path / "source.mp4", "aac")
    copy(VideoSource(f"{serve_folder(tmp_path)}/source.mp4"), tmp_path / "v.mp4")
    assert audible_range(tmp_path / "v.mp4")[1] == pytest.approx(3, abs=0.06)
