"""Read frames from a camera through OpenCV, which numbers cameras alike on all systems.

PyAV, which reads files and streams, needs a driver and a device name for each operating system.
"""

import time
from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Clip
from d2_maskrcnn.video.frame import Frame, VideoInfo

FAILED_READS = 10  # consecutive reads without an image after which a camera counts as unplugged
PAUSE = 0.05  # seconds between them
DEFAULT_RATE = Fraction(30)


class CameraSource:
    """Yield the frames of a camera at its own pace until it is unplugged.

    Args:
        number: camera number, counted from 0.
        clip: the frames to yield.

    Raises:
        UserError: there is no such camera, or it delivers no images.
    """

    def __init__(self, number: int, clip: Clip | None = None) -> None:
        self.number = number
        self.clip = clip or Clip()
        self.problem = ""
        self._capture = _open(number)
        ok, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not ok or first is None:
            self._capture.release()
            raise UserError(
                f"Camera {number}: not connected or no images; plug it in, close other programs that use it, or "
                "choose another number."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._first: np.ndarray | None = first
        self.info = VideoInfo(
            rate=(Fraction(rate).limit_denominator(1001) if 1 <= rate <= 1000 else DEFAULT_RATE) / self.clip.stride,
            live=True,
        )

    def __iter__(self) -> Iterator[Frame]:
        begin, index = time.monotonic(), 0
        try:
            while (image := self._read()) is not None:
                seconds = time.monotonic() - begin
                if self.clip.beyond(index, seconds):
                    return
                if not self.clip.before(index, seconds) and index % self.clip.stride == 0:
                    yield Frame(image, index, seconds)
                index += 1
        finally:
            self._capture.release()
        raise UserError(f"Camera {self.number}: no more images after {index} frames; was it unplugged?")

    def _read(self) -> np.ndarray | None:
        if self._first is not None:
            image, self._first = self._first, None
            return np.ascontiguousarray(image)
        for _ in range(FAILED_READS):
            ok, image = self._capture.read()
            if ok and image is not None:
                return np.ascontiguousarray(image)
            time.sleep(PAUSE)
        return None


def _open(number: int) -> cv2.VideoCapture:
    """Open a camera without the messages that OpenCV's back-ends print about one another."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(number)
    finally:
        log.setLogLevel(level)
