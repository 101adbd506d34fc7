"""Video files that every browser plays: H.264 in MP4, with the source's times and sound, through PyAV."""

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.containers import BROKEN, reason_of
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sinks.audio import Sound

logger = logging.getLogger(__name__)

H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
# Without B-frames, frames are stored in the order they are shown in, so a file of uneven times has the right length.
# A short look-ahead costs no size and, at 4K, half a gigabyte less than a long one.
OPTIONS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0", "rc-lookahead": "5"}}
LIVE_TIME_BASE = Fraction(1, 90000)
BITS_PER_PIXEL = 0.15  # for encoders without a constant quality
HD_HEIGHT = 720  # from here on colours are BT.709's, below BT.601's


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
        self._sound: Sound | None = None
        self._size = (0, 0)
        self._last_pts = -1
        self._end = 0
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
            for packet in self._stream.encode(self._image(frame)):
                self._mux(packet)
        except UserError:
            raise
        except BROKEN as error:
            raise UserError(f"Cannot write {self.path} ({reason_of(error)}).") from error
        self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds, the rest of the sound, and the file's index."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self._stream is not None:
                container.mux(self._stream.encode(None))
            if self._sound is not None:
                self._sound.finish(float(self._end * self._time_base))
            container.close()
        except BROKEN as error:
            raise UserError(f"Cannot finish {self.path} ({reason_of(error)}).") from error
        finally:
            if self._sound is not None:
                self._sound.close()

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
            self._sound = Sound.of(self.info.audio_from, frame.clock, self._container)
        self._container.start_encoding()  # opens the file: a bad place is known now, not some frames later

    def _image(self, frame: Frame) -> Any:
        pixels = frame.image
        odd = (pixels.shape[0] % 2, pixels.shape[1] % 2)
        if any(odd):
            pixels = np.pad(pixels, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        image = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="bgr24")
        image = image.reformat(format="yuv420p", dst_colorspace=self._colours)
        pts = round(Fraction(frame.time) / self._time_base) if frame.pts is None else frame.pts
        image.pts = self._last_pts = max(pts, self._last_pts + 1)  # times must grow
        image.time_base = self._time_base
        length = frame.duration or max(1, round(1 / self.info.rate / self._time_base))
        image.duration = length
        self._end = image.pts + length
        return image

    def _mux(self, packet: Any) -> None:
        if self._sound is not None and packet.pts is not None:
            self._sound.copy_until(float(packet.pts * packet.time_base))
        self._container.mux(packet)


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
