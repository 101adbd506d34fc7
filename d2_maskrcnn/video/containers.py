"""Open media files and streams with PyAV and read their properties."""

import contextlib
from fractions import Fraction
from typing import Any

import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.download import is_remote

try:
    import av
except ImportError as error:
    raise UserError('Reading and writing videos needs PyAV: pip install "d2_maskrcnn[demo]".') from error

LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "rtp://", "udp://", "srt://")
DOWNLOAD_RETRIES = 5  # reconnects to a server when the download of a file stalls or breaks off
# PyAV's errors don't share one base class: bad input also raises OSError and ValueError, as does a container that
# doesn't support a codec.
BROKEN = (av.error.FFmpegError, OSError, ValueError)
# Transfer functions of HDR video, numbered as in ITU-T H.273, table 3.
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


def media_url(path: object) -> str:
    """Convert a local path to a URL that FFmpeg opens as a file even if the name contains a colon (``10:30.mp4``)."""
    return str(path) if is_remote(str(path)) else f"file:{path}"


def to_bgr(image: Any) -> np.ndarray:
    """Convert a decoded image to (H, W, 3) uint8 BGR, rotated upright according to the stream's display matrix."""
    pixels = image.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns(image)))


def quarter_turns(image: Any) -> int:
    """Return the counterclockwise quarter turns of the display matrix, as ``np.rot90`` takes them."""
    return round((getattr(image, "rotation", 0) or 0) / 90) % 4


def video_stream(container: Any, address: str) -> Any:
    """Select the main video track as FFmpeg ranks them: default before others, cover images and previews last.

    Raises:
        UserError: there is no video track, or its codec is unknown.
    """
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    tracks = [stream for stream in container.streams.video if not stream.disposition & still]
    if not tracks:
        raise UserError(f"Video {address}: the file contains no video track.")
    best = container.streams.best("video")
    stream = best if best in tracks else tracks[0]
    if stream.codec_context is None:
        raise UserError(
            f"Video {address}: this build of FFmpeg doesn't know the video codec; convert the file to H.264."
        )
    return stream


def can_read(container: Any, stream: Any) -> bool:
    """Return whether a first packet can be read: False if the index is at the end and the server cannot seek."""
    try:
        return next(container.demux(stream)).size > 0
    except (*BROKEN, StopIteration):
        return False


def network_options(address: str, timeout: float) -> dict[str, str]:
    """Return FFmpeg's options (https://ffmpeg.org/ffmpeg-protocols.html) for a URL; ``timeout`` in seconds."""
    if address.lower().startswith("rtsp"):
        return {"rtsp_transport": "tcp"}
    if not address.lower().startswith("http"):
        return {}
    return {
        "rw_timeout": str(int(timeout * 1e6)),
        "multiple_requests": "1",
        "reconnect": "1",
        "reconnect_max_retries": str(DOWNLOAD_RETRIES),
    }


def duration_of(container: Any, stream: Any) -> float | None:
    """Return the duration in seconds stated by the stream, else by the container; None if neither states one."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def pixel_aspect_of(stream: Any, decode: bool) -> Fraction:
    """Return the width of a pixel of the upright image, divided by its height.

    A rotation by 90 degrees inverts it. Only a decoded frame states the rotation, so the first one is decoded if
    ``decode`` is True and pixels are not square.
    """
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    if aspect != 1 and decode:
        with contextlib.suppress(*BROKEN):
            for image in stream.container.decode(stream):
                return 1 / aspect if quarter_turns(image) % 2 else aspect
    return aspect


def reason_of(error: BaseException) -> str:
    """Return the informative part of a PyAV error message."""
    if isinstance(error, av.error.ExitError):  # FFmpeg's name for PyAV's own time limit
        return "no data arrived in time"
    return getattr(error, "strerror", None) or str(error)
