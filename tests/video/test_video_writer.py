import dataclasses
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Clip
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sinks.video_file import VideoWriter
from d2_maskrcnn.video.sources.video import VideoSource
from tests.video.conftest import frame_image, number_of, read_video


def copy(source, path) -> None:
    with VideoWriter(path, source.info) as writer:
        for frame in source:
            writer.write(frame)


def facts(path) -> dict:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        sound = container.streams.audio[0] if container.streams.audio else None
        return {
            "frames": video.frames,
            "rate": video.average_rate,
            "seconds": float(video.duration * video.time_base),
            "codec": video.codec_context.name,
            "pixels": video.codec_context.pix_fmt,
            "size": (video.height, video.width),
            "sound": sound and (sound.codec_context.name, float(sound.duration * sound.time_base)),
        }


def test_no_frames(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", VideoInfo(Fraction(10))):
        pass
    assert not (tmp_path / "v.mp4").exists()


@pytest.mark.parametrize("rate", [10, 25, Fraction(30000, 1001)])
def test_frames_and_times_are_those_of_the_source(make_video, tmp_path, rate):
    path = make_video(rate=rate)
    copy(VideoSource(str(path)), tmp_path / "v.mp4")
    assert facts(tmp_path / "v.mp4") == facts(path)
    assert [number_of(p) for p in read_video(tmp_path / "v.mp4")] == list(range(20))


def test_browsers_can_play_the_format(make_video, tmp_path):
    copy(VideoSource(str(make_video(codec="mjpeg", suffix=".avi"))), tmp_path / "v.mp4")
    written = facts(tmp_path / "v.mp4")
    assert (written["codec"], written["pixels"]) == ("h264", "yuv420p")
    data = (tmp_path / "v.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(720, 64), (64, 96)], ids=["BT.709", "BT.601"])
def test_colors_are_kept(tmp_path, size):
    image = frame_image(5, size)
    with VideoWriter(tmp_path / "v.mp4", VideoInfo(Fraction(10))) as writer:
        writer.write(Frame(np.ascontiguousarray(image[:, :, ::-1]), 0))
    (again,) = read_video(tmp_path / "v.mp4")
    assert np.abs(again.astype(int) - image).mean() < 4


def test_odd_sizes(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", VideoInfo(Fraction(10))) as writer:
        writer.write(Frame(np.zeros((63, 95, 3), np.uint8), 0))
    assert facts(tmp_path / "v.mp4")["size"] == (64, 96)


def test_strides_keep_the_length(make_video, tmp_path):
    copy(VideoSource(str(make_video()), Clip(stride=5)), tmp_path / "v.mp4")
    written = facts(tmp_path / "v.mp4")
    assert written["frames"] == 4 and written["seconds"] == pytest.approx(2)


def test_live_frames_keep_their_times(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", VideoInfo(Fraction(10), live=True)) as writer:
        for index, seconds in enumerate((0, 0.1, 0.5, 0.5, 2)):
            writer.write(Frame(np.zeros((64, 64, 3), np.uint8), index, seconds))
    with av.open(str(tmp_path / "v.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 0.5, 0.5, 2], abs=1e-3)
    assert facts(tmp_path / "v.mp4")["seconds"] == pytest.approx(2.1, abs=0.01)


def test_pixel_aspect_is_kept(make_video, tmp_path):
    source = VideoSource(str(make_video()))
    source.info = dataclasses.replace(source.info, pixel_aspect=Fraction(4, 3))
    copy(source, tmp_path / "v.mp4")
    assert VideoSource(str(tmp_path / "v.mp4")).info.pixel_aspect == Fraction(4, 3)


def test_a_change_of_size_is_refused(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", VideoInfo(Fraction(10))) as writer:
        writer.write(Frame(np.zeros((64, 64, 3), np.uint8), 0))
        with pytest.raises(UserError, match="64x64 to 32x64"):
            writer.write(Frame(np.zeros((64, 32, 3), np.uint8), 1))
    assert facts(tmp_path / "v.mp4")["frames"] == 1


def test_containers_without_h264(make_video, tmp_path):
    with pytest.raises(UserError, match="Cannot write"):
        copy(VideoSource(str(make_video())), tmp_path / "v.webm")


def test_missing_folder(tmp_path):
    writer = VideoWriter(tmp_path / "missing" / "v.mp4", VideoInfo(Fraction(10)))
    with pytest.raises(UserError, match="Cannot write"):
        writer.write(Frame(np.zeros((64, 64, 3), np.uint8), 0))


KILLED = """
import os, signal, sys
import numpy as np
from fractions import Fraction
from pathlib import Path
import d2_maskrcnn
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sinks.video_file import VideoWriter
writer = VideoWriter(Path(sys.argv[1]), VideoInfo(Fraction(10)))
for index in range(100):
    writer.write(Frame(np.full((64, 96, 3), index * 2, np.uint8), index, time=index / 10))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_a_playable_file(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "v.mp4")], check=False, timeout=120)
    assert len(read_video(tmp_path / "v.mp4")) >= 80  # the last second and the encoder's look-ahead are lost


def test_names_with_a_colon(make_video, tmp_path):
    (tmp_path / "10:30.mp4").write_bytes(make_video().read_bytes())
    copy(VideoSource(str(tmp_path / "10:30.mp4")), tmp_path / "11:30.mp4")
    assert len(read_video(f"file:{tmp_path / '11:30.mp4'}")) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10:30.mp4", "11:30.mp4"]
