"""Which part of a video is wanted."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "rtp://", "udp://", "srt://")
DEFAULT_RATE = Fraction(25)  # frames per second of a source that does not say


@dataclass(frozen=True)
class Position:
    """A place in a video: a frame's number, or seconds.

    >>> Position.parse("120"), Position.parse("1:02.5")
    (Position(value=120.0, in_seconds=False), Position(value=62.5, in_seconds=True))
    """

    value: float
    in_seconds: bool

    @classmethod
    def parse(cls, text: str) -> "Position":
        """``120`` is a frame's number, ``4.5s``, ``1:02`` and ``1:00:02.5`` are times.

        Raises:
            ValueError: it is neither.
        """
        parts = text.removesuffix("s").split(":")
        seconds = text.endswith("s") or len(parts) > 1
        value = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
        if value < 0 or not np.isfinite(value) or (not seconds and value != int(value)) or len(parts) > 3:
            raise ValueError(f"{text!r} is no frame number and no time")
        return cls(value, seconds)


@dataclass(frozen=True)
class Excerpt:
    """Which frames are wanted: from ``start`` on, before ``end``, and of those every ``stride``-th."""

    start: Position | None = None
    end: Position | None = None
    stride: int = 1

    @property
    def is_empty(self) -> bool:
        """Whether no frame can be in it, whatever the video; unknown, hence False, where one end is a number and the
        other a time.
        """
        if self.end is None:
            return False
        start = self.start or Position(0, self.end.in_seconds)
        return start.in_seconds == self.end.in_seconds and start.value >= self.end.value

    def before(self, index: int, seconds: float) -> bool:
        """Whether a frame comes before the excerpt."""
        return self.start is not None and (seconds + 1e-6 if self.start.in_seconds else index) < self.start.value

    def beyond(self, index: int, seconds: float) -> bool:
        """Whether a frame comes after the excerpt."""
        return self.end is not None and (seconds + 1e-6 if self.end.in_seconds else index) >= self.end.value


@dataclass(frozen=True)
class Clock:
    """Between times and frame numbers, for a constant rate."""

    rate: Fraction  # frames per second

    def seconds(self, position: Position | None) -> float | None:
        """When a position is; None for none."""
        if position is None:
            return None
        return position.value if position.in_seconds else float(position.value / self.rate)

    def frame(self, position: Position | None, default: int) -> int:
        """The first frame that is not before a position."""
        if position is None:
            return default
        return int(np.ceil(position.value * float(self.rate) - 1e-6)) if position.in_seconds else int(position.value)

    def expected(self, total: int, excerpt: Excerpt) -> int:
        """How many of ``total`` frames are wanted."""
        first = min(total, self.frame(excerpt.start, 0))
        last = min(total, self.frame(excerpt.end, total))
        return max(0, -(-(last - first) // excerpt.stride))
