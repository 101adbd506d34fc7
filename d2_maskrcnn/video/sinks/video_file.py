"""Write video files that every browser plays: H.264 in MP4, with the times and audio of the source, through PyAV."""

import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.containers import BROKEN, av, media_url, reason_of
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sinks.audio import AudioTrack

logger = logging.getLogger(__name__)

H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
# Without B-frames, frames are stored in display order, so files with uneven times have the right duration. A short
# look-ahead costs no size and, at 4K, half a gigabyte less than a long one.
OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0", "rc-lookahead": "5"}}
# While it is written, an MP4 file consists of fragments, so that a killed process leaves a playable file
# (https://ffmpeg.org/ffmpeg-formats.html, movflags). Closing it puts one index at the front, as players expect.
MP4_OPTIONS = {
    "movflags": "+frag_keyframe+delay_moov+default_base_moof",
    "frag_duration": "1000000",
    "flush_packets": "1",
}
MP4_SUFFIXES = (".mp4", ".mov", ".m4v")
LIVE_TIME_BASE = Fraction(1, 90000)
BITS_PER_PIXEL = 0.15  # for encoders without a constant-quality mode
HD_HEIGHT = 720  # from this height on colors are BT.709, below it BT.601


class VideoWriter:
    """Write frames to a file as they arrive. Close it (or use it in a ``with`` statement) to complete the file.

    The first frame opens the file and sets its size. Odd sizes lose nothing: a row or column is repeated, because 4:2:0
    subsampling needs even ones.

    Args:
        path: the file; its suffix selects the container format.
        info: times, pixel aspect and audio of the source.

    Attributes:
        frames: number of frames written.
    """

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path, self.info = path, info
        self.frames = 0
        self._container: Any = None
        self._stream: Any = None
        self._audio: AudioTrack | None = None
        self._size = (0, 0)
        self._last_pts = -1
        self._end = 0
        self._time_base = info.time_base or LIVE_TIME_BASE

    def write(self, frame: Frame) -> None:
        """Append a frame.

        Raises:
            UserError: the file cannot be written, or the frame's size differs from the first one's.
        """
        try:
            if self._container is None:
                self._begin(frame)
            if frame.size != self._size:
                raise UserError(
                    f"{self.path}: the video changes its size from {self._size[1]}x{self._size[0]} to "
                    f"{frame.size[1]}x{frame.size[0]} at frame {frame.index}; process the two parts separately."
                )
            for packet in self._stream.encode(self._image(frame)):
                self._mux(packet)
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(f"Cannot write {self.path} ({reason_of(error)}).") from error
        self.frames += 1

    def close(self) -> None:
        """Flush the encoder, write the rest of the audio and complete the file.

        Raises:
            UserError: the file cannot be completed.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self._stream is not None:
                container.mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.finish(float(self._end * self._time_base))
            container.close()
            if self.path.suffix.lower() in MP4_SUFFIXES:
                _move_index_to_front(self.path)
        except BROKEN as error:
            raise UserError(f"Cannot complete {self.path} ({reason_of(error)}).") from error
        finally:
            if self._audio is not None:
                self._audio.close()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, frame: Frame) -> None:
        self._size = frame.size
        is_hd = self._size[0] >= HD_HEIGHT
        name = _encoder()
        options = MP4_OPTIONS if self.path.suffix.lower() in MP4_SUFFIXES else {}
        self._container = av.open(media_url(self.path), "w", options=options)
        self._stream = stream = self._container.add_stream(name, rate=self.info.rate, options=OPTIONS.get(name, {}))
        stream.width, stream.height = (side + side % 2 for side in reversed(self._size))
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        stream.codec_context.sample_aspect_ratio = self.info.pixel_aspect
        standard = av.video.reformatter.Colorspace
        self._colorspace = standard.ITU709 if is_hd else standard.ITU601
        stream.codec_context.colorspace = 1 if is_hd else 6  # BT.709 and BT.601 in ITU-T H.273, table 4
        stream.codec_context.color_range = 1  # 16 to 235
        if name not in OPTIONS:
            stream.bit_rate = int(self._size[0] * self._size[1] * float(self.info.rate) * BITS_PER_PIXEL)
        if self.info.audio_from is not None:
            self._audio = AudioTrack.open(self.info.audio_from, frame.clock, self._container)
        self._container.start_encoding()  # opens the file, so that a bad path is reported now

    def _image(self, frame: Frame) -> Any:
        pixels = frame.image
        odd = (pixels.shape[0] % 2, pixels.shape[1] % 2)
        if any(odd):
            pixels = np.pad(pixels, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        image = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="bgr24")
        image = image.reformat(format="yuv420p", dst_colorspace=self._colorspace)
        pts = round(Fraction(frame.time) / self._time_base) if frame.pts is None else frame.pts
        image.pts = self._last_pts = max(pts, self._last_pts + 1)  # two live frames may round to the same time
        image.time_base = self._time_base
        image.duration = frame.duration or max(1, round(1 / self.info.rate / self._time_base))
        self._end = image.pts + image.duration
        return image

    def _mux(self, packet: Any) -> None:
        if self._audio is not None and packet.pts is not None:
            self._audio.copy_until(float(packet.pts * packet.time_base))
        self._container.mux(packet)


def _move_index_to_front(path: Path) -> None:
    """Copy the packets of an MP4 file to a new one with the index before them, and replace the file by it."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with (
            av.open(media_url(path)) as source,
            av.open(media_url(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as target,
        ):
            streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _encoder() -> str:
    """Name the H.264 encoder of this build of FFmpeg, or MPEG-4 with a warning if it has none."""
    for name in H264_ENCODERS:
        if name in av.codecs_available:
            try:
                av.codec.Codec(name, "w")
            except ValueError:
                continue
            return name
    logger.warning(
        "This FFmpeg has no H.264 encoder: writing MPEG-4 part 2, which browsers don't play. "
        "Install PyAV with pip to get H.264."
    )
    return "mpeg4"
