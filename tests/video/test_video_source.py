import itertools
import os
from fractions import Fraction

import av
import numpy as np
import pytest

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Clip, Position
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sinks.video_file import VideoWriter
from d2_maskrcnn.video.sources.video import VideoSource
from tests.video.conftest import frame_image, number_of


def numbers(source) -> list[int]:
    return [number_of(frame.image) for frame in source]


def test_all_frames_with_their_times(make_video):
    source = VideoSource(str(make_video()))
    frames = list(source)
    assert [number_of(f.image) for f in frames] == [f.index for f in frames] == list(range(20))
    assert [f.time for f in frames] == pytest.approx([i / 10 for i in range(20)])
    assert source.info.frames == 20 and source.info.rate == 10 and not source.info.live
    assert source.problem == ""
    assert frames[0].image.shape == (64, 96, 3) and frames[0].image.flags.c_contiguous


def test_color_channels(make_video):
    """The right half is blue; frames are BGR."""
    frame = next(iter(VideoSource(str(make_video(size=(128, 192))))))
    assert np.abs(frame.image[-10, -10].astype(int) - (160, 90, 40)).max() < 8


@pytest.mark.parametrize(
    ("start", "end", "stride", "expected"),
    [
        (None, None, 1, range(20)),
        ("5", "9", 1, range(5, 9)),
        ("0.5s", "0.9s", 1, range(5, 9)),
        ("0:01", None, 1, range(10, 20)),
        (None, None, 7, [0, 7, 14]),
        ("3", "18", 5, [3, 8, 13]),
        (None, "99", 19, [0, 19]),
    ],
)
def test_clips(make_video, start, end, stride, expected):
    parse = lambda text: None if text is None else Position.parse(text)  # noqa: E731
    source = VideoSource(str(make_video()), Clip(parse(start), parse(end), stride))
    assert source.info.frames == len(list(expected))
    frames = list(source)
    assert [number_of(f.image) for f in frames] == [f.index for f in frames] == list(expected)
    assert [f.time for f in frames] == pytest.approx([(i - next(iter(expected))) / 10 for i in expected])


@pytest.mark.parametrize("start", ["20", "2s", "99s"])
def test_a_clip_beyond_the_end(make_video, start):
    source = VideoSource(str(make_video()), Clip(Position.parse(start)))
    assert source.info.frames == 0
    with pytest.raises(UserError, match=r"no frame of its 2\.0 s is between"):
        list(source)


@pytest.mark.parametrize(
    ("start", "end", "empty"),
    [
        (None, None, False),
        ("5", "6", False),
        ("5", "5", True),
        ("1:00", "59s", True),
        (None, "0", True),
        ("5", "1s", False),
    ],
)
def test_empty_clips(start, end, empty):
    assert Clip(start and Position.parse(start), end and Position.parse(end)).is_empty == empty


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "1:2:3:4", "nans"])
def test_invalid_positions(text):
    with pytest.raises(ValueError):
        Position.parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "cannot be opened"), (b"no video" * 100, "cannot be opened")],
)
def test_not_a_video(tmp_path, content, message):
    path = tmp_path / "v.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        VideoSource(str(path))


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
def test_not_a_file(tmp_path, kind):
    path = tmp_path / "v.mp4"
    {"FIFO": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](path)
    with pytest.raises(UserError, match=r"v\.mp4: a folder, FIFO, device or socket; expected a file"):
        VideoSource(str(path))


def test_audio_file(tmp_path):
    import wave

    with wave.open(str(tmp_path / "v.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    with pytest.raises(UserError, match="no video track"):
        VideoSource(str(tmp_path / "v.wav"))


def test_an_unknown_codec(make_video, tmp_path):
    path = tmp_path / "v.avi"
    path.write_bytes(make_video(codec="mjpeg", suffix=".avi").read_bytes().replace(b"MJPG", b"XYZ9"))
    with pytest.raises(UserError, match="codec"):
        list(VideoSource(str(path)))


def test_a_truncated_file(make_video, tmp_path):
    """The index is at the beginning, so the file can be opened; frames come before the report of the problem."""
    whole = make_video(size=(240, 320), options={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "v.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    source = VideoSource(str(path))
    assert source.info.frames == 20
    decoded = numbers(source)
    assert 3 <= len(decoded) < 20 and decoded[:3] == [0, 1, 2]  # the last ones may be incomplete
    assert "20 frames" in source.problem


@pytest.mark.parametrize("suffix", [".mkv", ".flv"])
@pytest.mark.parametrize("sound", [None, "aac"])
def test_a_truncated_file_that_does_not_count_frames(make_video, tmp_path, suffix, sound):
    whole = make_video(frames=40, suffix=suffix, sound=sound)
    source = VideoSource(str(whole))
    assert len(list(source)) == 40 and source.problem == ""
    path = tmp_path / f"v{suffix}"
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = VideoSource(str(path))
    assert 0 < len(list(source)) < 40
    # Some versions of FFmpeg return the incomplete last packet.
    assert "header states" in source.problem or "could not be decoded" in source.problem


@pytest.mark.parametrize("stated", [12, 99])
def test_a_wrong_frame_count_in_the_header(make_video, tmp_path, stated):
    data = bytearray(make_video(codec="mjpeg", suffix=".avi").read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    assert int.from_bytes(data[at : at + 4], "little") == 20
    data[at : at + 4] = stated.to_bytes(4, "little")
    path = tmp_path / "v.avi"
    path.write_bytes(data)
    source = VideoSource(str(path))
    assert len(list(source)) == 20
    assert str(stated) in source.problem and "20" in source.problem


def test_frames_dropped_during_the_recording_are_not_missing(tmp_path):
    """AVI files contain an empty chunk for each dropped frame, and their header counts it."""
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in (0, 2, 3, 7, 8, 9):
            image = av.VideoFrame.from_ndarray(frame_image(index, (64, 96)), format="rgb24")
            image.pts, image.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    source = VideoSource(str(tmp_path / "v.avi"))
    assert source.info.frames == 10
    assert numbers(source) == [0, 2, 3, 7, 8, 9] and source.problem == ""


def test_frames_hidden_by_an_edit_list(make_video, tmp_path):
    """As phones do when a video is trimmed: the other frames stay in the file."""
    data = bytearray(make_video().read_bytes())
    at = data.index(b"elst") + 12  # duration of the only entry, in milliseconds
    assert int.from_bytes(data[at : at + 4], "big") == 2000
    data[at : at + 4] = (1000).to_bytes(4, "big")
    (tmp_path / "v.mp4").write_bytes(data)
    source = VideoSource(str(tmp_path / "v.mp4"))
    assert source.info.frames == 10
    assert numbers(source) == list(range(10)) and source.problem == ""


def test_frames_that_cannot_be_decoded(make_video, tmp_path):
    data = make_video(codec="png", suffix=".mov").read_bytes()
    parts = data.split(b"\x89PNG")
    assert len(parts) == 21
    for index in (8, 12):
        parts[index] = bytes(len(parts[index]))
    path = tmp_path / "v.mov"
    path.write_bytes(b"\x89PNG".join(parts))
    source = VideoSource(str(path))
    assert numbers(source) == [i for i in range(20) if i not in (7, 11)]
    assert "2 of 20 packets" in source.problem


def rotated(path, target):
    """Copy an MP4 file with a rotation of 90 degrees clockwise in its header."""
    data = path.read_bytes()
    one, two = (65536).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    none, minus = bytes(4), (-65536).to_bytes(4, "big", signed=True)
    upright = one + none * 3 + one + none * 3 + two
    matrix = none + one + none + minus + none * 4 + two
    at = data.index(upright, data.index(b"tkhd"))  # the track's matrix, not the movie's
    target.write_bytes(data[:at] + matrix + data[at + 36 :])
    return str(target)


def test_rotated_phone_videos(make_video, tmp_path):
    image = next(iter(VideoSource(rotated(make_video(), tmp_path / "v.mp4")))).image
    assert image.shape == (96, 64, 3)
    assert image[:40].mean() < image[-40:].mean()  # the dark left half of frame 0 is at the top


def test_rotation_inverts_the_pixel_aspect(make_video, tmp_path):
    with VideoWriter(tmp_path / "wide.mp4", VideoInfo(Fraction(10), pixel_aspect=Fraction(4, 3))) as writer:
        writer.write(Frame(np.zeros((64, 96, 3), np.uint8), 0))
    assert VideoSource(str(tmp_path / "wide.mp4")).info.pixel_aspect == Fraction(4, 3)
    assert VideoSource(rotated(tmp_path / "wide.mp4", tmp_path / "v.mp4")).info.pixel_aspect == Fraction(3, 4)


def write_tracks(path, tracks) -> None:
    """Write one video track per (codec, pixel format, size, disposition, frames)."""
    with av.open(str(path), "w") as container:
        streams = []
        for codec, pixels, size, disposition, frames in tracks:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = size
            stream.pix_fmt, stream.disposition = pixels, disposition
            streams.append((stream, size, frames))
        for stream, size, frames in streams:
            for index in range(frames):
                image = av.VideoFrame.from_ndarray(frame_image(index, size), format="rgb24")
                container.mux(stream.encode(image.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))


def test_the_default_track_is_read_not_the_preview(tmp_path):
    preview = ("mjpeg", "yuvj420p", (48, 64), av.stream.Disposition(0), 1)
    main = ("libx264", "yuv420p", (64, 96), av.stream.Disposition.default, 10)
    write_tracks(tmp_path / "two.mkv", [preview, main])
    frames = list(VideoSource(str(tmp_path / "two.mkv")))
    assert len(frames) == 10 and frames[0].size == (64, 96)


def test_complete_avi_files_whose_time_stamps_start_at_one(tmp_path):
    """H.264 with B-frames in AVI: presentation times start at 1, decoding times at 0."""
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "2"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_image(index, (64, 96)), format="rgb24")))
        container.mux(stream.encode(None))
    source = VideoSource(str(tmp_path / "v.avi"))
    frames = list(source)
    assert len(frames) == 20 and source.problem == ""
    assert all(a.time < b.time for a, b in itertools.pairwise(frames))


def test_a_clock_that_restarts_is_continued(make_video, tmp_path):
    """Two concatenated recordings in a transport stream: the second begins at 0 again."""
    path = tmp_path / "v.ts"
    path.write_bytes(make_video(suffix=".ts").read_bytes() * 2)
    times = [frame.time for frame in VideoSource(str(path))]
    assert len(times) == 40
    assert np.diff(times) == pytest.approx(np.full(39, 0.1), abs=0.02)
