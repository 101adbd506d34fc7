"""Frames from video files and from streams (RTSP, HTTP), through PyAV."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import DEFAULT_RATE, LIVE_SCHEMES, Clock, Excerpt
from d2_maskrcnn.video.containers import (
    BROKEN,
    FILE_RETRIES,
    duration_of,
    has_packets,
    network_options,
    quarter_turns,
    reason_of,
    to_bgr,
    video_stream,
)
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sources.download import FetchedFile

logger = logging.getLogger(__name__)

# Containers that do not count frames but have their length in a header, which a file that is cut short keeps.
DURATION_IN_HEADER = ("matroska,webm", "flv")
SHOWN_PART = 0.9  # of the frames, by their length: below it some are stored but not shown
SECONDS_MISSING = 0.5  # of that length before it counts as cut short


class VideoSource:
    """Frames of a file or an address, in order. Each iteration opens it anew.

    Args:
        address: path or URL.
        excerpt: the frames that are wanted.
        timeout: seconds without data after which a stream counts as stalled.
        reconnects: how often in a row a stalled or broken live stream is opened again.

    Attributes:
        info: what the container says.
        problem: after the iteration, what was wrong with a file that could be read in part; "" if nothing.

    Raises:
        UserError: it cannot be opened, has no video, or its codec is unknown.
    """

    def __init__(
        self, address: str, excerpt: Excerpt | None = None, timeout: float = 10.0, reconnects: int = 5
    ) -> None:
        self.address = address
        self.excerpt = excerpt or Excerpt()
        self.timeout, self.reconnects = timeout, reconnects
        self.problem = ""
        self._remote = "://" in address
        self._fetched: FetchedFile | None = None
        self.live = True  # until the container says how long it is
        with self._open() as container:
            stream = video_stream(container, address)
            self._rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            self._stated = int(stream.frames or 0)  # packets, as the header has it; 0: it does not say
            self._duration = duration_of(container, stream)
            self.live = address.lower().startswith(LIVE_SCHEMES) or (self._remote and self._duration is None)
            self.info = self._info(stream, has_audio=bool(container.streams.audio))
            in_place = self.live or not self.address.lower().startswith("http") or has_packets(container, stream)
        if not in_place:
            self._fetched = FetchedFile(address, timeout)
            self.info = dataclasses.replace(self.info, audio_from=self.info.audio_from and str(self._fetched.path))

    def _open(self) -> Any:
        if not self._remote and not Path(self.address).exists():
            raise UserError(f"Video {self.address}: there is no such file.")
        try:
            if not self._remote or self._fetched is not None:
                return av.open(self.address if self._fetched is None else str(self._fetched.path))
            # A file's download is taken up again by FFmpeg itself, which may need several times the time.
            patience = self.timeout if self.live else self.timeout * (FILE_RETRIES + 2)
            return av.open(self.address, timeout=patience, options=network_options(self.address, self.timeout))
        except BROKEN as error:
            raise UserError(f"Video {self.address} cannot be opened ({reason_of(error)}).") from error

    def _info(self, stream: Any, has_audio: bool) -> VideoInfo:
        return VideoInfo(
            rate=self._rate / self.excerpt.stride,
            time_base=stream.time_base,
            frames=None if self.live else self._expected(),
            live=self.live,
            pixel_aspect=self._pixel_aspect(stream),
            audio_from=self.address if has_audio and not self.live else None,
        )

    def _pixel_aspect(self, stream: Any) -> Fraction:
        """Of the upright image: a quarter turn makes wide pixels tall ones, and only a frame knows of the turn."""
        aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
        if aspect != 1 and not self.live:
            with contextlib.suppress(*BROKEN):
                for image in stream.container.decode(stream):
                    return 1 / aspect if quarter_turns(image) % 2 else aspect
        return aspect

    def _expected(self) -> int | None:
        """How many frames will come, by what the container says."""
        by_time = None if self._duration is None else round(self._duration * self._rate)
        total = self._stated or by_time
        if total is None:
            return None
        if by_time is not None and by_time < SHOWN_PART * total:  # an edit list leaves the others out
            total = by_time
        return Clock(self._rate).expected(total, self.excerpt)

    def __iter__(self) -> Iterator[Frame]:
        return self._follow() if self.live else self._read_file()

    def _read_file(self) -> Iterator[Frame]:
        reader, shown = _Reader(self), 0
        for frame in reader:
            shown += 1
            yield frame
        self.problem = reader.problem(self._stated)
        if shown == 0:
            raise UserError(f"Video {self.address}: {self.problem or self._nothing(reader)}.")

    def _nothing(self, reader: "_Reader") -> str:
        if self.excerpt.start is None and self.excerpt.end is None:
            return "not a single frame could be decoded"
        length = "" if self._duration is None else f" of its {self._duration:.1f} s"
        frames = "" if reader.sought else f" ({reader.decoded} frames were read)"
        return f"no frame{length} lies in the part asked for with --start and --end{frames}"

    def _follow(self) -> Iterator[Frame]:
        """Frames of a live stream, opened again when it stalls or breaks."""
        begin, index, failures, reason = time.monotonic(), 0, 0, ""
        while failures <= self.reconnects:
            if failures:
                logger.warning(
                    "Stream %s: %s; connecting again (%d of %d)", self.address, reason, failures, self.reconnects
                )
                time.sleep(min(2.0 ** (failures - 1) * 0.25, 5.0))
            try:
                for frame in _Reader(self, live=True):
                    failures = 0
                    frame.index, frame.time = index, time.monotonic() - begin
                    frame.pts = frame.duration = None  # each connection counts anew
                    index += 1
                    if self.excerpt.beyond(frame.index, frame.time):
                        return
                    if not self.excerpt.before(frame.index, frame.time) and frame.index % self.excerpt.stride == 0:
                        yield frame
                reason = "it ended"
            except UserError as error:
                reason = str(error).removeprefix(f"Video {self.address} ").rstrip(".")
            failures += 1
        raise UserError(f"Stream {self.address}: {reason}; given up after {self.reconnects} new connections.")


class _Reader:
    """One pass over a container."""

    def __init__(self, source: VideoSource, live: bool = False) -> None:
        self.source, self.live = source, live
        self.packets = self.decoded = self.bad_packets = 0
        self.complete = False  # whether the excerpt's end was reached before the file's
        self.sought = False  # whether frames at the beginning were passed over
        self.failure = ""
        self.stated_seconds: float | None = None  # of all tracks, where the container has it in a header
        self.end = 0.0  # seconds: where the last packet of any track ends
        self.last_number = 0  # one more than the last time, in units of the stream's time base
        self.counts_empty = False  # whether frames that were dropped at the recording are in the header's number

    def __iter__(self) -> Iterator[Frame]:
        with self.source._open() as container:
            stream = video_stream(container, self.source.address)
            stream.thread_type = "AUTO"
            self.counts_empty = container.format.name == "avi"  # its time base is a frame
            if container.format.name in DURATION_IN_HEADER and container.duration:
                self.stated_seconds = container.duration / av.time_base
            yield from self._frames(container, stream)

    def _frames(self, container: Any, stream: Any) -> Iterator[Frame]:
        excerpt, base = self.source.excerpt, stream.time_base
        first_pts, origin, shown = self._seek(container, stream), None, 0
        for image in self._decoded(container, stream):
            index = self.decoded
            self.decoded += 1
            pts = image.pts if image.pts is not None else round(index / self.source._rate / base)
            first_pts = pts if first_pts is None else first_pts
            seconds = float((pts - first_pts) * base)
            if self.sought:  # frames before were not decoded, hence not counted
                index = round(seconds * self.source._rate)
            if self.live:
                yield Frame(to_bgr(image), index)
                continue
            if excerpt.before(index, seconds):
                continue
            if excerpt.beyond(index, seconds):
                self.complete = True
                return
            if shown % excerpt.stride == 0:
                origin = pts if origin is None else origin
                length = (image.duration or 0) * excerpt.stride
                yield Frame(
                    to_bgr(image),
                    index,
                    float((pts - origin) * base),
                    clock=float(pts * base),
                    pts=pts - origin,
                    duration=length or None,
                )
            shown += 1

    def _seek(self, container: Any, stream: Any) -> int | None:
        """Goes to the key frame before the excerpt, if its beginning is a time; returns the time of the first frame."""
        start = self.source.excerpt.start
        if self.live or start is None or not start.in_seconds or stream.start_time is None:
            return None
        try:
            container.seek(stream.start_time + int(start.value / stream.time_base), stream=stream)
        except BROKEN:
            return None  # no index: everything before is decoded instead
        self.sought = True
        return stream.start_time

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decoded images; packets that cannot be decoded are counted and left out."""
        sound = container.streams.audio if self.stated_seconds else ()
        packets = container.demux(stream, *sound)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except BROKEN as error:
                self.failure = reason_of(error)
                if self.live:
                    raise UserError(f"it broke off ({self.failure})") from error
                return
            if packet.pts is not None:
                self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.type != "video":
                continue
            self.packets += packet.size > 0
            if packet.pts is not None:
                self.last_number = max(self.last_number, packet.pts + 1)
            try:
                images = packet.decode()
            except BROKEN as error:
                self.bad_packets += 1
                self.failure = reason_of(error)
                continue
            yield from images

    def problem(self, stated: int) -> str:
        """What was wrong, in a few words; "" if nothing was."""
        if self.complete:
            return ""
        counted = max(self.packets, self.last_number) if self.counts_empty else self.packets
        if stated and counted != stated and not self.sought:
            what = "it is cut short, or its header lies" if self.packets < stated else "its header lies"
            return f"the header says {stated} frames, {self.packets} are there ({what}); {self.decoded} were decoded"
        if self.bad_packets:
            return f"{self.bad_packets} of {self.packets} packets could not be decoded ({self.failure})"
        if self.failure:
            return f"it broke off ({self.failure}) after {self.decoded} frames"
        if self.stated_seconds and self.end < self.stated_seconds - SECONDS_MISSING:
            return (
                f"the header says {self.stated_seconds:.1f} s, but it ends at {self.end:.1f} s "
                f"(it is cut short, or its header lies); {self.decoded} frames were decoded"
            )
        return ""
