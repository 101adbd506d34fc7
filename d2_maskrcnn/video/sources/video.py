"""Read frames from video files and streams (RTSP, HTTP) through PyAV."""

import dataclasses
import logging
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.video.clip import DEFAULT_RATE, Clip
from d2_maskrcnn.video.containers import (
    BROKEN,
    DOWNLOAD_RETRIES,
    HDR_TRANSFERS,
    LIVE_SCHEMES,
    av,
    can_read,
    duration_of,
    media_url,
    network_options,
    pixel_aspect_of,
    reason_of,
    to_bgr,
    video_stream,
)
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.sources.download import DownloadedFile
from d2_maskrcnn.weights.download import is_remote

logger = logging.getLogger(__name__)

# Containers that don't count frames but state their duration in a header, which a truncated file keeps.
DURATION_IN_HEADER = ("matroska,webm", "flv")
SHOWN_PART = 0.9  # a duration below this share of the frames means that an edit list hides some of them
SECONDS_MISSING = 0.5  # of the stated duration before a file counts as truncated
CLOCK_RESET = 0.5  # seconds that time stamps jump back by before the clock counts as restarted


class VideoSource:
    """Yield the frames of a file or URL in order. Each iteration opens it again.

    Args:
        address: path or URL.
        clip: the frames to yield.
        timeout: seconds without data after which a stream counts as stalled.
        reconnects: consecutive attempts to reopen a stalled or broken live stream.

    Attributes:
        info: what the container states.
        problem: after the iteration, why a file could only be read in part; "" if it was read completely.

    Raises:
        UserError: it cannot be opened, has no video track, or its codec is unknown.
    """

    def __init__(self, address: str, clip: Clip | None = None, timeout: float = 10.0, reconnects: int = 5) -> None:
        self.address = address
        self.clip = clip or Clip()
        self.timeout, self.reconnects = timeout, reconnects
        self.problem = ""
        self._download: DownloadedFile | None = None
        self.live = True  # until the container states a duration
        with self.open() as container:
            stream = video_stream(container, address)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            self._stated_frames = int(stream.frames or 0)  # packets, according to the header; 0: not stated
            self._duration = duration_of(container, stream)
            self.live = address.lower().startswith(LIVE_SCHEMES) or (is_remote(address) and self._duration is None)
            self.info = self._info(stream, has_audio=bool(container.streams.audio))
            if (hdr := HDR_TRANSFERS.get(int(stream.codec_context.color_trc or 0))) is not None:
                logger.warning(
                    "Video %s is HDR (%s): it is read without tone mapping, so colors look dull.", address, hdr
                )
            readable = self.live or not address.lower().startswith("http") or can_read(container, stream)
        if not readable:
            self._download = DownloadedFile(address, timeout)
            self.info = dataclasses.replace(self.info, audio_from=self.info.audio_from and str(self._download.path))

    def open(self) -> Any:
        """Open a container on the file, the stream, or the downloaded copy.

        Raises:
            UserError: it cannot be opened.
        """
        path = self.address if self._download is None else str(self._download.path)
        if not is_remote(path) and not Path(path).is_file():
            problem = "a folder, FIFO, device or socket; expected a file" if Path(path).exists() else "no such file"
            raise UserError(f"Video {self.address}: {problem}.")
        try:
            if not is_remote(path):
                return av.open(media_url(path))
            # FFmpeg resumes the download of a file by itself, which may take several times the timeout.
            patience = self.timeout if self.live else self.timeout * (DOWNLOAD_RETRIES + 2)
            return av.open(path, timeout=patience, options=network_options(path, self.timeout))
        except BROKEN as error:
            raise UserError(f"Video {self.address}: cannot be opened ({reason_of(error)}).") from error

    def _info(self, stream: Any, has_audio: bool) -> VideoInfo:
        return VideoInfo(
            rate=self.rate / self.clip.stride,
            time_base=stream.time_base,
            frames=None if self.live else self._expected_frames(),
            live=self.live,
            pixel_aspect=pixel_aspect_of(stream, decode=not self.live),
            audio_from=self.address if has_audio and not self.live else None,
        )

    def _expected_frames(self) -> int | None:
        by_time = None if self._duration is None else round(self._duration * self.rate)
        total = self._stated_frames or by_time
        if total is None:
            return None
        if by_time is not None and by_time < SHOWN_PART * total:
            total = by_time
        return self.clip.length(total, self.rate)

    def __iter__(self) -> Iterator[Frame]:
        return self._follow_stream() if self.live else self._read_file()

    def _read_file(self) -> Iterator[Frame]:
        reader, shown = _Reader(self), 0
        for frame in reader:
            shown += 1
            yield frame
        self.problem = reader.problem(self._stated_frames)
        if shown == 0:
            raise UserError(f"Video {self.address}: {self.problem or self._describe_empty_clip(reader)}.")

    def _describe_empty_clip(self, reader: "_Reader") -> str:
        if self.clip.start is None and self.clip.end is None:
            return "not a single frame could be decoded"
        length = "" if self._duration is None else f" of its {self._duration:.1f} s"
        frames = "" if reader.seeked else f" ({reader.decoded} frames were read)"
        return f"no frame{length} is between the requested start and end{frames}"

    def _follow_stream(self) -> Iterator[Frame]:
        """Yield the frames of a live stream, reopening it when it stalls or breaks."""
        begin, index, failures, reason = time.monotonic(), 0, 0, ""
        while failures <= self.reconnects:
            if failures:
                logger.warning(
                    "Stream %s: %s; reconnecting (%d of %d)", self.address, reason, failures, self.reconnects
                )
                time.sleep(min(2.0 ** (failures - 1) * 0.25, 5.0))
            try:
                for frame in _Reader(self, live=True):
                    failures = 0
                    frame.index, frame.time = index, time.monotonic() - begin
                    frame.pts = frame.duration = None  # each connection has time stamps of its own
                    index += 1
                    if self.clip.beyond(frame.index, frame.time):
                        return
                    if not self.clip.before(frame.index, frame.time) and frame.index % self.clip.stride == 0:
                        yield frame
                reason = "it ended"
            except UserError as error:
                reason = str(error).removeprefix(f"Video {self.address}: ").rstrip(".")
            failures += 1
        raise UserError(f"Stream {self.address}: {reason}; gave up after {self.reconnects} reconnects.")


class _Reader:
    """Read a container once, and count packets and times to report afterwards whether it was complete."""

    def __init__(self, source: VideoSource, live: bool = False) -> None:
        self.source, self.live = source, live
        self.packets = self.decoded = self.bad_packets = 0
        self.reached_end_of_clip = False
        self.seeked = False  # whether frames at the beginning were skipped without decoding them
        self.failure = ""
        self.stated_seconds: float | None = None  # of all tracks, where a header states them
        self.end = 0.0  # seconds at which the last packet of any track ends
        self.last_number = 0  # one more than the last decoding time, in units of the stream's time base
        self.counts_dropped = False  # whether the header counts frames that were dropped during the recording

    def __iter__(self) -> Iterator[Frame]:
        with self.source.open() as container:
            stream = video_stream(container, self.source.address)
            stream.thread_type = "AUTO"
            self.counts_dropped = container.format.name == "avi"  # whose time base is one frame
            if container.format.name in DURATION_IN_HEADER and container.duration:
                self.stated_seconds = container.duration / av.time_base
            yield from self._frames(container, stream)

    def _frames(self, container: Any, stream: Any) -> Iterator[Frame]:
        clip, base = self.source.clip, stream.time_base
        first, origin, shown = self._seek(container, stream), None, 0
        for image, pts in self._with_increasing_times(container, stream):
            index = self.decoded
            self.decoded += 1
            first = pts if first is None else first
            seconds = float((pts - first) * base)
            if self.seeked:  # skipped frames were not counted
                index = round(seconds * self.source.rate)
            if self.live:
                yield Frame(to_bgr(image), index)
                continue
            if clip.before(index, seconds):
                continue
            if clip.beyond(index, seconds):
                self.reached_end_of_clip = True
                return
            if shown % clip.stride == 0:
                origin = pts if origin is None else origin
                yield Frame(
                    to_bgr(image),
                    index,
                    time=float((pts - origin) * base),
                    clock=float(pts * base),
                    pts=pts - origin,
                    duration=(image.duration or 0) * clip.stride or None,
                )
            shown += 1

    def _with_increasing_times(self, container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
        """Pair each image with a strictly increasing time stamp, in units of the time base.

        A clock that restarts in the middle of a file continues where it stopped; smaller steps back are rounding or
        damage and become the next possible time.
        """
        base, offset, last = stream.time_base, 0, None
        length = max(1, round(1 / self.source.rate / base))
        for image in self._decoded(container, stream):
            stamp = image.pts if image.pts is not None else round(self.decoded / self.source.rate / base)
            pts = stamp + offset
            if last is not None and pts <= last:
                if (last - pts) * base > CLOCK_RESET:
                    offset += last + length - pts
                    pts = last + length
                else:
                    pts = last + 1
            last = pts
            yield image, pts

    def _seek(self, container: Any, stream: Any) -> int | None:
        """Seek to the key frame before a clip that starts at a time; return the time stamp of the first frame."""
        start = self.source.clip.start
        if self.live or start is None or not start.in_seconds or stream.start_time is None:
            return None
        try:
            container.seek(stream.start_time + int(start.value / stream.time_base), stream=stream)
        except BROKEN:
            return None  # no index: everything before the clip is decoded instead
        self.seeked = True
        return stream.start_time

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """Yield decoded images; packets that cannot be decoded are counted and skipped."""
        audio = container.streams.audio if self.stated_seconds else ()
        packets = container.demux(stream, *audio)
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
            self._note_times(packet)
            if packet.stream.type != "video":
                continue
            try:
                images = packet.decode()
            except BROKEN as error:
                self.bad_packets += 1
                self.failure = reason_of(error)
                continue
            yield from images

    def _note_times(self, packet: Any) -> None:
        if packet.pts is not None:
            self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.type == "video":
            self.packets += packet.size > 0
            if packet.dts is not None:  # presentation times may start at 1, decoding times start at 0
                self.last_number = max(self.last_number, packet.dts + 1)

    def problem(self, stated: int) -> str:
        """Describe the file's damage in a few words; "" if there is none."""
        if self.reached_end_of_clip:
            return ""
        counted = max(self.packets, self.last_number) if self.counts_dropped else self.packets
        if stated and counted != stated and not self.seeked:
            cause = "truncated file or wrong header" if self.packets < stated else "wrong header"
            content = f"the header states {stated} frames, the file contains {self.packets} ({cause})"
            return f"{content}; {self.decoded} were decoded"
        if self.bad_packets:
            return f"{self.bad_packets} of {self.packets} packets could not be decoded ({self.failure})"
        if self.failure:
            return f"it broke off ({self.failure}) after {self.decoded} frames"
        if self.stated_seconds and self.end < self.stated_seconds - SECONDS_MISSING:
            return (
                f"the header states {self.stated_seconds:.1f} s, the file ends at {self.end:.1f} s "
                f"(truncated file or wrong header); {self.decoded} frames were decoded"
            )
        return ""
