"""The sound of a video, carried over alongside the frames: copied where browsers play it, else encoded as AAC."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from d2_maskrcnn.video.containers import BROKEN, reason_of

logger = logging.getLogger(__name__)

COPIED = ("aac", "mp3")  # what browsers play from an MP4 file
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
USUAL_RATE = 48000  # for sound of another rate
LONG_WAY = 10.0  # seconds that are sought rather than read
GAP = 0.05  # seconds of missing sound that become silence; what is shorter is rounding
NETWORK_TIMEOUT = 10.0


class Sound:
    """The first sound track of a file, written packet by packet. What is wrong with it never costs the video.

    Args:
        address: of the file or the server.
        begin: seconds on the file's own clock that become 0.
        target: open container, to which a stream is added; its header is not written yet.

    Raises:
        one of :data:`d2_maskrcnn.video.containers.BROKEN`: it cannot be read. See :meth:`of`.
    """

    def __init__(self, address: str, begin: float, target: Any) -> None:
        self._address, self._begin, self._target = address, begin, target
        self._source = av.open(address, timeout=NETWORK_TIMEOUT if "://" in address else None)
        self._input = self._source.streams.audio[0]
        self._track = _track(self._input, target, begin)
        self._seek()
        self._packets: Iterator[Any] = self._source.demux(self._input)
        self._next: Any = None
        self._done = False

    @classmethod
    def of(cls, address: str, begin: float, target: Any) -> "Sound | None":
        """None, with a warning, where the sound cannot be read."""
        try:
            return cls(address, begin, target)
        except (*BROKEN, IndexError, AttributeError) as error:  # AttributeError: a codec that FFmpeg does not know
            logger.warning("The sound of %s is left out: %s", address, error)
            return None

    def copy_until(self, seconds: float) -> None:
        """Writes the sound before ``seconds`` of what is shown."""
        try:
            while not self._done:
                packet = self._next if self._next is not None else next(self._packets)
                self._next = None
                if packet.pts is None or not packet.size:
                    continue
                if float(packet.pts * packet.time_base) - self._begin >= seconds:
                    self._next = packet
                    return
                self._track.put(packet)
        except StopIteration:
            self._done = True
        except BROKEN as error:
            self._break_off(error)

    def finish(self, seconds: float) -> None:
        """Writes the sound before ``seconds`` and what the encoder still holds."""
        self.copy_until(seconds)
        try:
            self._track.finish()
        except BROKEN as error:
            self._break_off(error)

    def close(self) -> None:
        """Closes the file that is read."""
        self._source.close()

    def _break_off(self, error: BaseException) -> None:
        if not self._done:
            logger.warning("The sound of %s breaks off: %s", self._address, reason_of(error))
        self._done = True

    def _seek(self) -> None:
        unit = Fraction(self._input.time_base or 1)
        if self._begin - float((self._input.start_time or 0) * unit) < LONG_WAY:
            return
        try:
            self._source.seek(int((self._begin - 1) / unit), stream=self._input)
        except BROKEN:  # no index: everything before is read
            logger.debug("no seeking in %s", self._address)


def _track(source: Any, target: Any, begin: float) -> "_Copied | _Encoded":
    if source.codec_context.codec.canonical_name in COPIED:
        try:
            return _Copied(source, target, begin)
        except ValueError:  # this container does not take it
            logger.debug("%s does not take %s", target.format.name, source.codec_context.name)
    return _Encoded(source, target, begin)


class _Copied:
    """Packets as they are, moved in time."""

    def __init__(self, source: Any, target: Any, begin: float) -> None:
        self._stream, self._target = target.add_stream_from_template(source), target
        self._shift = round(begin / source.time_base)
        self._last: int | None = None

    def put(self, packet: Any) -> None:
        begin = packet.pts - self._shift
        if self._shift and begin + (packet.duration or 0) <= 0:  # without a shift it is the encoder's lead-in
            return
        packet.dts = begin if packet.dts is None else packet.dts - self._shift
        packet.pts = begin
        if self._last is not None and packet.dts <= self._last:  # a container takes no times that go back
            return
        self._last = packet.dts
        packet.stream = self._stream
        self._target.mux(packet)

    def finish(self) -> None:
        pass


class _Encoded:
    """AAC in mono or stereo. Gaps become silence, so that the sound stays with the image."""

    def __init__(self, source: Any, target: Any, begin: float) -> None:
        codec = source.codec_context
        self._rate = codec.sample_rate if codec.sample_rate in AAC_RATES else USUAL_RATE
        layout = "mono" if codec.channels == 1 else "stereo"
        self._stream, self._target, self._begin = target.add_stream("aac", rate=self._rate), target, begin
        self._stream.codec_context.layout = layout
        self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=self._rate)
        self._written: int | None = None  # samples up to now

    def put(self, packet: Any) -> None:
        for sound in packet.decode():
            time = None if sound.pts is None else float(sound.pts * sound.time_base) - self._begin
            for part in self._resampler.resample(sound):
                self._put_samples(part.to_ndarray(), None if time is None else round(time * self._rate))
                time = None

    def finish(self) -> None:
        if self._written is None:
            return
        for part in self._resampler.resample(None):
            self._put_samples(part.to_ndarray(), None)
        self._target.mux(self._stream.encode(None))

    def _put_samples(self, samples: np.ndarray, at: int | None) -> None:
        """Encodes (channels, n) float32, whose first sample belongs at ``at``; None: behind the last ones."""
        if self._written is None:  # the first ones say where the sound begins
            early = max(0, -(at or 0))
            if early >= samples.shape[1]:
                return
            samples, at = samples[:, early:], max(0, at or 0)
            self._written = at
        missing = 0 if at is None else at - self._written
        if missing > GAP * self._rate:
            self._encode(np.zeros((len(samples), missing), np.float32))
        self._encode(samples)

    def _encode(self, samples: np.ndarray) -> None:
        assert self._written is not None
        sound = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format="fltp", layout=self._stream.codec_context.layout.name
        )
        sound.sample_rate, sound.pts, sound.time_base = self._rate, self._written, Fraction(1, self._rate)
        self._written += samples.shape[1]
        self._target.mux(self._stream.encode(sound))
