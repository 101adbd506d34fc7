"""Data that travels through the pipeline."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from d2_maskrcnn.data.windowed_images import WindowedImage
from d2_maskrcnn.structures.detections import Detections


@dataclass
class Frame:
    """An image or a video frame on its way from a source to the sinks.

    Attributes:
        image: (H, W, 3) uint8, BGR, contiguous; the annotator draws into it. Of a windowed image it is empty until that
            is drawn, and smaller than :attr:`size` if that is very large.
        index: frame number in the source, counted from 0 and including skipped frames; of an image its ``image_id``.
        time: seconds since the first frame of the clip, strictly increasing; 0 for images.
        name: path of an image, "" for video frames.
        clock: seconds on the source's own clock, which its audio track uses.
        pts, duration: ``time`` and the frame's length in units of the source's time base; None without a time base.
        detections: set by the model stage.
        label_scores: (N,) scores for the labels where they differ from those of the detections (tracking).
        uncertainty: of the model about this frame, in [0, 1]; see
            :func:`~d2_maskrcnn.data.formats.predictions.uncertainty`.
        records: detections as JSON-compatible dicts, when a sink needs them.
        raw: (H, W, C) float32, what the model gets in place of ``image`` if its ``INPUT.FORMAT`` is ``RAW``; released
            once it is resized.
        windowed: a large image that is predicted by tiles, in place of both.
        network_input: (C, H', W'), resized for the model; released after the model stage.
        problem: why this frame could not be processed; "" if it was.
    """

    image: np.ndarray
    index: int
    time: float = 0.0
    name: str = ""
    clock: float = 0.0
    pts: int | None = None
    duration: int | None = None
    detections: Detections | None = None
    label_scores: np.ndarray | None = None
    uncertainty: float = 0.0
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
    raw: np.ndarray | None = field(default=None, repr=False)
    windowed: WindowedImage | None = None
    network_input: Any = field(default=None, repr=False)
    problem: str = ""

    @property
    def model_image(self) -> np.ndarray | WindowedImage:
        """What the model gets."""
        if self.windowed is not None:
            return self.windowed
        return self.image if self.raw is None else self.raw

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        shape = self.image.shape if self.windowed is None else self.windowed.shape
        return shape[0], shape[1]


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video source that are known before its frames are read.

    Attributes:
        rate: frames per second after applying the clip's stride.
        time_base: seconds per unit of ``Frame.pts``; None where frames only have a time.
        frames: expected number of frames; None if unknown or endless.
        live: whether frames arrive in real time, so that stale ones may be dropped.
        pixel_aspect: width of a pixel divided by its height.
        audio_from: file or URL of the audio that belongs to the frames.
    """

    rate: Fraction
    time_base: Fraction | None = None
    frames: int | None = None
    live: bool = False
    pixel_aspect: Fraction = Fraction(1)
    audio_from: str | None = None
