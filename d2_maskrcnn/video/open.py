"""Which library reads and writes videos: PyAV, or OpenCV, with a loud warning, where that is not installed."""

import logging
from pathlib import Path
from typing import Any

from d2_maskrcnn.video.clip import Excerpt
from d2_maskrcnn.video.frame import VideoInfo
from d2_maskrcnn.video.sources.camera import CameraSource

try:
    import av  # noqa: F401

    HAS_PYAV = True
except ImportError:
    HAS_PYAV = False

logger = logging.getLogger(__name__)


def open_video(address: str, excerpt: Excerpt | None = None, timeout: float = 10.0) -> Any:
    """A source of frames from a file or a stream.

    Raises:
        UserError: it cannot be opened.
    """
    if HAS_PYAV:
        from d2_maskrcnn.video.sources.video_file import VideoSource

        return VideoSource(address, excerpt, timeout)
    from d2_maskrcnn.video.opencv_video import OpenCVSource

    _warn("streams are not opened again when they stall, and damaged files are not told from short ones")
    return OpenCVSource(address, excerpt)


def open_camera(number: int, excerpt: Excerpt | None = None) -> CameraSource:
    """A source of frames from a webcam.

    Raises:
        UserError: there is no such camera.
    """
    return CameraSource(number, excerpt)


def open_writer(path: Path, info: VideoInfo) -> Any:
    """A writer for a video file."""
    if HAS_PYAV:
        from d2_maskrcnn.video.sinks.video_file import VideoWriter

        return VideoWriter(path, info)
    from d2_maskrcnn.video.opencv_video import OpenCVWriter

    _warn("the video is written as MPEG-4 part 2, which browsers do not play, and without sound")
    return OpenCVWriter(path, info)


def _warn(consequence: str) -> None:
    logger.warning("PyAV is not installed, so OpenCV stands in: %s. Mend it with: pip install av", consequence)
