"""What travels through the demo's pipeline."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from d2_maskrcnn.structures.detections import Detections


@dataclass
class Frame:
    """An image, or a frame of a video, on its way from the source to the outputs.

    Attributes:
        image: (H, W, 3) uint8, BGR, contiguous; the detections are drawn into it.
        index: number of the frame in its source, counted from 0, those left out included.
        time: seconds since the beginning of what is shown; 0 for images.
        name: file of an image, "" for frames of videos.
        clock: seconds on the source's own clock, by which its sound goes.
        pts, duration: the time and the length in units of the source's time base, for sources that have one.
        found: the detections, from the model stage on.
        shown_scores: (N,) what the labels say; None for the detections' own.
        records: the detections as JSON's types, where a file wants them.
        network_input: what the model is given: (3, H', W') uint8, resized; dropped after the model.
    """

    image: np.ndarray
    index: int
    time: float = 0.0
    name: str = ""
    clock: float = 0.0
    pts: int | None = None
    duration: int | None = None
    found: Detections | None = None
    shown_scores: np.ndarray | None = None
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
    network_input: Any = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class VideoInfo:
    """What a video source says of itself before its frames are read.

    Attributes:
        rate: frames per second of what is handed out.
        time_base: seconds of one unit of ``Frame.pts``; None where frames only have a time.
        frames: how many frames will come if nothing is amiss, or None: unknown, or endless.
        live: whether frames come in their own time and stale ones may be dropped.
        pixel_aspect: width of a pixel through its height.
        audio_from: file or address whose sound belongs to the frames.
    """

    rate: Fraction
    time_base: Fraction | None = None
    frames: int | None = None
    live: bool = False
    pixel_aspect: Fraction = Fraction(1)
    audio_from: str | None = None
