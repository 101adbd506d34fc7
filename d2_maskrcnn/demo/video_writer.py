"""Video files that every browser plays: H.264 in MP4, with the source's times and sound, through PyAV."""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from d2_maskrcnn.demo.frame import Frame, VideoInfo
from d2_maskrcnn.errors import UserError

logger = logging.getLogger(__name__)

H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
# Without B-frames, frames are stored in the order they are shown in, so a file of uneven times has the right length.
OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0"}}
COPIED_AUDIO = ("aac", "mp3")  # what browsers play from an MP4 file; the rest is encoded again
LIVE_TIME_BASE = Fraction(1, 90000)
BITS_PER_PIXEL = 0.15  # for encoders without a constant quality
HD_HEIGHT = 720  # from here on colours are BT.709's, below BT.601's
_FAILED = (av.error.FFmpegError, OSError)


class VideoWriter:
    """Writes frames to a file as they come. Close it (or use it in a ``with``): the file cannot be played before.

    The file is opened with the first frame, whose size all others must have. Odd sizes lose nothing: a row or column is
    repeated, as H.264's 4:2:0 needs even ones.

    Args:
        path: of the file; its suffix says which container.
        info: times, pixel shape and sound of the source.

    Attributes:
        frames: how many were written.
    """

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path, self.info = path, info
        self.frames = 0
        self._container: Any = None
        self._stream: Any = None
        self._audio: _AudioCopy | None = None
        self._size = (0, 0)
        self._last_pts = -1
        self._time_base = info.time_base or LIVE_TIME_BASE

    def write(self, frame: Frame) -> None:
        """Adds a frame.

        Raises:
            UserError: the file cannot be written, or the frame has another size than the first.
        """
        try:
            if self._container is None:
                self._begin(frame)
            if frame.size != self._size:
                raise UserError(
                    f"{self.path}: the video changes its size from {self._size[1]}x{self._size[0]} to "
                    f"{frame.size[1]}x{frame.size[0]} at frame {frame.index}; take it in parts (--start, --end)."
                )
            image = self._image(frame)
            for packet in self._stream.encode(image):
                self._mux(packet)
        except _FAILED as error:
            raise UserError(f"Cannot write {self.path} ({getattr(error, 'strerror', None) or error}).") from error
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds, the rest of the sound, and the file's index."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            for packet in self._stream.encode(None):
                self._mux(packet, container)
            if self._audio is not None:
                self._audio.copy_until(float(self._end * self._time_base), container)
            container.close()
        except _FAILED as error:
            raise UserError(f"Cannot finish {self.path} ({getattr(error, 'strerror', None) or error}).") from error
        finally:
            if self._audio is not None:
                self._audio.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, frame: Frame) -> None:
        self._size = frame.size
        name = _encoder()
        self._container = av.open(str(self.path), "w", options=_container_options(self.path))
        self._stream = stream = self._container.add_stream(name, rate=self.info.rate, options=OPTIONS.get(name, {}))
        stream.width, stream.height = (side + side % 2 for side in reversed(self._size))
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        stream.codec_context.sample_aspect_ratio = self.info.pixel_aspect
        standard = av.video.reformatter.Colorspace
        self._colours = standard.ITU709 if self._size[0] >= HD_HEIGHT else standard.ITU601
        stream.codec_context.colorspace = 1 if self._size[0] >= HD_HEIGHT else 6  # as H.264 numbers the two
        stream.codec_context.color_range = 1  # 16 to 235
        if name not in OPTIONS:
            stream.bit_rate = int(self._size[0] * self._size[1] * float(self.info.rate) * BITS_PER_PIXEL)
        if self.info.audio_from is not None:
            self._audio = _AudioCopy.of(self.info, self._container)
        self._container.start_encoding()  # opens the file: a bad place is known now, not some frames later

    def _image(self, frame: Frame) -> Any:
        picture = frame.picture
        odd = (picture.shape[0] % 2, picture.shape[1] % 2)
        if any(odd):
            picture = np.pad(picture, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        image = av.VideoFrame.from_ndarray(picture, format="bgr24")
        image = image.reformat(format="yuv420p", dst_colorspace=self._colours)
        pts = round(Fraction(frame.time) / self._time_base) if frame.pts is None else frame.pts
        image.pts = self._last_pts = max(pts, self._last_pts + 1)  # times must grow
        image.time_base = self._time_base
        length = frame.duration or max(1, round(1 / self.info.rate / self._time_base))
        image.duration = length
        self._end = image.pts + length
        return image

    def _mux(self, packet: Any, container: Any = None) -> None:
        container = container or self._container
        if self._audio is not None and packet.pts is not None:
            self._audio.copy_until(float(packet.pts * packet.time_base), container)
        container.mux(packet)


class _AudioCopy:
    """The sound of the source, copied (or encoded as AAC) alongside the frames."""

    def __init__(self, info: VideoInfo, source: Any, target: Any) -> None:
        self._source, self._info = source, info
        self._input = source.streams.audio[0]
        self._copied = self._input.codec_context.name in COPIED_AUDIO
        if self._copied:
            self._stream = target.add_stream_from_template(self._input)
        else:
            self._stream = target.add_stream("aac", rate=self._input.codec_context.sample_rate)
        if info.audio_start:
            source.seek(int(info.audio_start / self._input.time_base), stream=self._input)
        self._shift = round(info.audio_start / self._input.time_base)
        self._packets = source.demux(self._input)
        self._next: Any = None
        self._done = False

    @classmethod
    def of(cls, info: VideoInfo, target: Any) -> "_AudioCopy | None":
        """None, with a warning, where the sound cannot be read."""
        try:
            return cls(info, av.open(str(info.audio_from)), target)
        except (*_FAILED, ValueError) as error:
            logger.warning("The sound of %s is left out: %s", info.audio_from, error)
            return None

    def copy_until(self, seconds: float, target: Any) -> None:
        """Writes the sound before ``seconds`` of what is shown."""
        while not self._done:
            packet = self._next if self._next is not None else self._read()
            self._next = None
            if packet is None:
                break
            begin = float((packet.pts - self._shift) * packet.time_base)
            if begin >= seconds:
                self._next = packet
                return
            if begin >= 0 or not self._shift:  # an encoder's lead-in lies before 0
                self._write(packet, target)

    def close(self) -> None:
        self._source.close()

    def _read(self) -> Any:
        try:
            for packet in self._packets:
                if packet.pts is not None and packet.size:
                    return packet
        except _FAILED as error:
            logger.warning("The sound of %s breaks off: %s", self._info.audio_from, error)
        self._done = True
        return None

    def _write(self, packet: Any, target: Any) -> None:
        if self._copied:
            packet.pts -= self._shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - self._shift
            packet.stream = self._stream
            target.mux(packet)
            return
        for sound in packet.decode():
            sound.pts = None if sound.pts is None else sound.pts - self._shift
            for encoded in self._stream.encode(sound):
                target.mux(encoded)


def _encoder() -> str:
    """The H.264 encoder of this build of FFmpeg; MPEG-4 with a loud warning where there is none."""
    for name in H264_ENCODERS:
        if name in av.codecs_available:
            try:
                av.codec.Codec(name, "w")
            except ValueError:
                continue
            return name
    logger.warning(
        "This FFmpeg has no H.264 encoder: writing MPEG-4 part 2, which browsers do not play. "
        "Install PyAV with pip to get H.264."
    )
    return "mpeg4"


def _container_options(path: Path) -> dict[str, str]:
    # The index at the beginning, so that a browser can play while it loads.
    return {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".mov", ".m4v") else {}
