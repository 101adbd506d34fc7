"""Select a part of a video by frame numbers or times."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

DEFAULT_RATE = Fraction(25)  # frames per second of a source that doesn't state its rate


@dataclass(frozen=True)
class Position:
    """A position in a video: a frame number or a time in seconds.

    >>> Position.parse("120"), Position.parse("1:02.5")
    (Position(value=120.0, in_seconds=False), Position(value=62.5, in_seconds=True))
    """

    value: float
    in_seconds: bool

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parse a frame number (``120``) or a time (``4.5s``, ``1:02``, ``1:00:02.5``).

        Raises:
            ValueError: ``text`` is neither.
        """
        parts = text.removesuffix("s").split(":")
        seconds = text.endswith("s") or len(parts) > 1
        value = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
        if value < 0 or not np.isfinite(value) or (not seconds and value != int(value)) or len(parts) > 3:
            raise ValueError(f"{text!r} is neither a frame number nor a time")
        return cls(value, seconds)


@dataclass(frozen=True)
class Clip:
    """The frames to process: from ``start`` up to but excluding ``end``, and of those every ``stride``-th."""

    start: Position | None = None
    end: Position | None = None
    stride: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether no frame of any video can be in the clip.

        False where one end is a frame number and the other a time, which cannot be compared without the video.
        """
        if self.end is None:
            return False
        start = self.start or Position(0, self.end.in_seconds)
        return start.in_seconds == self.end.in_seconds and start.value >= self.end.value

    def before(self, index: int, seconds: float) -> bool:
        """Return whether the frame with this number and time precedes the clip."""
        return self.start is not None and (seconds + 1e-6 if self.start.in_seconds else index) < self.start.value

    def beyond(self, index: int, seconds: float) -> bool:
        """Return whether the frame with this number and time follows the clip."""
        return self.end is not None and (seconds + 1e-6 if self.end.in_seconds else index) >= self.end.value

    def length(self, total: int, rate: Fraction) -> int:
        """Count the frames of the clip in a video of ``total`` frames at a constant ``rate`` (frames per second)."""

        def frame(position: Position | None, default: int) -> int:
            if position is None:
                return default
            if position.in_seconds:
                return int(np.ceil(position.value * float(rate) - 1e-6))
            return int(position.value)

        first, last = min(total, frame(self.start, 0)), min(total, frame(self.end, total))
        return max(0, -(-(last - first) // self.stride))
