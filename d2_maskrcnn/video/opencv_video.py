"""Videos without PyAV: OpenCV reads and writes them, without sound and in a format that browsers do not play."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import DEFAULT_RATE, LIVE_SCHEMES, Clock, Excerpt
from d2_maskrcnn.video.frame import Frame, VideoInfo


class OpenCVSource:
    """Frames of a file or an address; see :class:`d2_maskrcnn.video.sources.video_file.VideoSource`.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, address: str, excerpt: Excerpt | None = None) -> None:
        self.address = address
        self.excerpt = excerpt or Excerpt()
        self.problem = ""
        self._capture = cv2.VideoCapture(address)
        if not self._capture.isOpened():
            raise UserError(f"Video {address} cannot be opened: missing, broken, or of an unknown format.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= 1000 else DEFAULT_RATE
        self._stated = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        live = address.lower().startswith(LIVE_SCHEMES)
        clock = Clock(self._rate)
        expected = None if live or not self._stated else clock.expected(self._stated, self.excerpt)
        self.info = VideoInfo(rate=self._rate / self.excerpt.stride, frames=expected, live=live)

    def __iter__(self) -> Iterator[Frame]:
        index = shown = 0
        try:
            while (image := self._read()) is not None:
                seconds = float(index / self._rate)
                if self.excerpt.beyond(index, seconds):
                    break
                if not self.excerpt.before(index, seconds):
                    if shown % self.excerpt.stride == 0:
                        yield Frame(image, index, float(shown / self._rate))
                    shown += 1
                index += 1
        finally:
            self._capture.release()
        if shown == 0:
            where = " in the part asked for with --start and --end" if index else ""
            raise UserError(f"Video {self.address}: no frame could be read{where} ({index} were read).")
        if image is None and index < self._stated:
            self.problem = f"the header says {self._stated} frames, but only {index} could be read"

    def _read(self) -> np.ndarray | None:
        ok, image = self._capture.read()
        return np.ascontiguousarray(image) if ok else None


class OpenCVWriter:
    """Writes MPEG-4 part 2; see :class:`d2_maskrcnn.video.sinks.video_file.VideoWriter`."""

    def __init__(self, path: Path, info: VideoInfo) -> None:
        self.path, self.info = path, info
        self.frames = 0
        self._writer: Any = None

    def write(self, frame: Frame) -> None:
        """Adds a frame.

        Raises:
            UserError: the file cannot be written.
        """
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, float(self.info.rate), frame.size[::-1])
            if not self._writer.isOpened():
                raise UserError(f"Cannot write {self.path} with OpenCV: name a file that ends in .mp4.")
        self._writer.write(frame.image)
        self.frames += 1

    def close(self) -> None:
        """Finishes the file."""
        if self._writer is not None:
            self._writer.release()
