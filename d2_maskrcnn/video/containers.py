"""What PyAV's containers, streams and images tell of a video."""

from typing import Any

import av
import numpy as np

from d2_maskrcnn.errors import UserError

FILE_RETRIES = 5  # how often a file's download that stalls or breaks off is taken up again
# av.FFmpegError is not the base of everything that PyAV raises: a bad input gives OSError and ValueError too, and a
# container that does not take a codec ValueError.
BROKEN = (av.error.FFmpegError, OSError, ValueError)


def to_bgr(image: Any) -> np.ndarray:
    """A decoded image as (H, W, 3) uint8 BGR, upright as the stream's display matrix says."""
    pixels = image.to_ndarray(format="bgr24")
    return np.ascontiguousarray(np.rot90(pixels, quarter_turns(image)))


def quarter_turns(image: Any) -> int:
    """How far the display matrix turns the image: counterclockwise, like NumPy's."""
    return round((getattr(image, "rotation", 0) or 0) / 90) % 4


def video_stream(container: Any, address: str) -> Any:
    """The first video stream.

    Raises:
        UserError: there is none, or its codec is unknown.
    """
    if not container.streams.video:
        raise UserError(f"Video {address}: there is no video in this file.")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UserError(f"Video {address}: its video codec is unknown to this build of FFmpeg; convert it to H.264.")
    return stream


def has_packets(container: Any, stream: Any) -> bool:
    """Whether anything can be read: not where the index is at the file's end and the server cannot go back."""
    try:
        return next(container.demux(stream)).size > 0
    except (*BROKEN, StopIteration):
        return False


def network_options(address: str, timeout: float) -> dict[str, str]:
    """FFmpeg's options for its protocols (https://ffmpeg.org/ffmpeg-protocols.html)."""
    if address.lower().startswith("rtsp"):
        return {"rtsp_transport": "tcp"}
    if not address.lower().startswith("http"):
        return {}
    return {
        "rw_timeout": str(int(timeout * 1e6)),
        "multiple_requests": "1",
        "reconnect": "1",
        "reconnect_max_retries": str(FILE_RETRIES),
    }


def duration_of(container: Any, stream: Any) -> float | None:
    """Seconds that the stream, or else the container, says it lasts; None where neither does."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def reason_of(error: BaseException) -> str:
    """The part of PyAV's message that tells something."""
    if isinstance(error, av.error.ExitError):  # what FFmpeg calls it when PyAV's time limit is over
        return "no data came in time"
    return getattr(error, "strerror", None) or str(error)
