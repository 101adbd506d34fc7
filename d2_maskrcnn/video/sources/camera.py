"""Frames from a camera, through OpenCV."""

import time
from collections.abc import Iterator
from fractions import Fraction

import cv2
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import Excerpt
from d2_maskrcnn.video.frame import Frame, VideoInfo

FAILED_READS = 10  # reads without an image in a row after which a camera counts as unplugged
PAUSE = 0.05  # seconds between them
DEFAULT_RATE = Fraction(30)


class CameraSource:
    """Frames of a webcam, as fast as it gives them, until it is unplugged.

    Args:
        number: of the camera, counted from 0.
        excerpt: which frames are wanted.

    Raises:
        UserError: there is no such camera, or it gives no images.
    """

    def __init__(self, number: int, excerpt: Excerpt | None = None) -> None:
        self.number = number
        self.excerpt = excerpt or Excerpt()
        self.problem = ""
        self._capture = _open(number)
        ok, first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not ok or first is None:
            self._capture.release()
            raise UserError(
                f"Camera {number} is not there or gives no images: plug it in, close other programs that use it, or "
                "name another with --webcam N."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._first: np.ndarray | None = first
        self.info = VideoInfo(
            rate=(Fraction(rate).limit_denominator(1001) if 1 <= rate <= 1000 else DEFAULT_RATE) / self.excerpt.stride,
            live=True,
        )

    def __iter__(self) -> Iterator[Frame]:
        begin, index = time.monotonic(), 0
        try:
            while (image := self._read()) is not None:
                seconds = time.monotonic() - begin
                if self.excerpt.beyond(index, seconds):
                    return
                if not self.excerpt.before(index, seconds) and index % self.excerpt.stride == 0:
                    yield Frame(image, index, seconds)
                index += 1
        finally:
            self._capture.release()
        raise UserError(f"Camera {self.number} gives no more images after {index} frames: was it unplugged?")

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
    """Opens a camera without the lines that OpenCV's back-ends print about each other."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(number)
    finally:
        log.setLogLevel(level)
