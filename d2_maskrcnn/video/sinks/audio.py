"""Copy the audio of a video alongside the frames: unchanged where browsers play it, otherwise encoded as AAC."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from d2_maskrcnn.video.containers import BROKEN, av, media_url, reason_of
from d2_maskrcnn.weights.download import is_remote

logger = logging.getLogger(__name__)

COPIED = ("aac", "mp3")  # codecs that browsers play from an MP4 file
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
DEFAULT_RATE = 48000  # for audio with another sample rate
SEEK_FROM = 10.0  # seconds; shorter distances are read rather than seeked
GAP = 0.05  # seconds of missing audio that are filled with silence; shorter gaps are rounding
NETWORK_TIMEOUT = 10.0  # seconds


class AudioTrack:
    """Copy the first audio track of a file packet by packet. A fault in it never costs the video.

    Args:
        address: path or URL of the file.
        begin: seconds on the file's own clock that become 0.
        target: open container that gets an audio stream; its header must not be written yet.

    Raises:
        one of :data:`d2_maskrcnn.video.containers.BROKEN`: the audio cannot be read. See :meth:`open`.
    """

    def __init__(self, address: str, begin: float, target: Any) -> None:
        self._address, self._begin, self._target = address, begin, target
        self._source = av.open(media_url(address), timeout=NETWORK_TIMEOUT if is_remote(address) else None)
        self._input = self._source.streams.audio[0]
        self._track = _track(self._input, target, begin)
        self._seek()
        self._packets: Iterator[Any] = self._source.demux(self._input)
        self._next: Any = None
        self._done = False
        self.bad_packets = 0

    @classmethod
    def open(cls, address: str, begin: float, target: Any) -> "AudioTrack | None":
        """Return the track, or None with a warning if the audio cannot be read. For the arguments see the class."""
        try:
            return cls(address, begin, target)
        except (*BROKEN, IndexError, AttributeError) as error:  # AttributeError: a codec that FFmpeg doesn't know
            logger.warning("The audio of %s is left out: %s", address, error)
            return None

    def copy_until(self, seconds: float) -> None:
        """Write the audio before ``seconds`` of the output."""
        try:
            while not self._done:
                packet = self._next if self._next is not None else next(self._packets)
                self._next = None
                if packet.pts is None or not packet.size:
                    continue
                if float(packet.pts * packet.time_base) - self._begin >= seconds:
                    self._next = packet
                    return
                self._put(packet)
        except StopIteration:
            self._done = True
        except BROKEN as error:
            logger.warning("The audio of %s breaks off: %s", self._address, reason_of(error))
            self._done = True

    def finish(self, seconds: float) -> None:
        """Write the audio before ``seconds`` and flush the encoder."""
        self.copy_until(seconds)
        try:
            self._track.finish()
        except BROKEN as error:
            logger.warning("The end of the audio of %s is lost: %s", self._address, reason_of(error))
        if self.bad_packets:
            logger.warning("The audio of %s: %d packets were damaged and skipped.", self._address, self.bad_packets)

    def close(self) -> None:
        """Close the source file."""
        self._source.close()

    def _put(self, packet: Any) -> None:
        try:
            self._track.put(packet)
        except BROKEN as error:  # like a damaged image, a damaged packet must not cost the rest
            logger.debug("audio packet at %s skipped: %s", packet.pts, reason_of(error))
            self.bad_packets += 1

    def _seek(self) -> None:
        unit = Fraction(self._input.time_base or 1)
        if self._begin - float((self._input.start_time or 0) * unit) < SEEK_FROM:
            return
        try:
            self._source.seek(int((self._begin - 1) / unit), stream=self._input)
        except BROKEN:  # no index: everything before is read
            logger.debug("no seeking in %s", self._address)


def _track(source: Any, target: Any, begin: float) -> "_Copied | _Encoded":
    codec = source.codec_context
    # AAC in transport streams repeats its configuration in every packet, but MP4 needs it before the first one.
    is_adts = codec.codec.canonical_name == "aac" and not codec.extradata
    if codec.codec.canonical_name in COPIED and not is_adts:
        try:
            return _Copied(source, target, begin)
        except ValueError:  # the container doesn't support this codec
            logger.debug("%s doesn't support %s", target.format.name, codec.name)
    return _Encoded(source, target, begin)


class _Copied:
    """Copy packets unchanged, shifted in time."""

    def __init__(self, source: Any, target: Any, begin: float) -> None:
        self._stream, self._target = target.add_stream_from_template(source), target
        self._shift = round(begin / source.time_base)
        self._last: int | None = None

    def put(self, packet: Any) -> None:
        begin = packet.pts - self._shift
        if self._shift and begin + (packet.duration or 0) <= 0:  # without a shift it is the encoder's priming
            return
        packet.dts = begin if packet.dts is None else packet.dts - self._shift
        packet.pts = begin
        if self._last is not None and packet.dts <= self._last:  # containers reject times that run backwards
            return
        self._last = packet.dts
        packet.stream = self._stream
        self._target.mux(packet)

    def finish(self) -> None:
        pass


class _Encoded:
    """Encode AAC in mono or stereo. Gaps become silence, so that audio and images stay in sync."""

    def __init__(self, source: Any, target: Any, begin: float) -> None:
        codec = source.codec_context
        self._rate = codec.sample_rate if codec.sample_rate in AAC_RATES else DEFAULT_RATE
        layout = "mono" if codec.channels == 1 else "stereo"
        self._stream, self._target, self._begin = target.add_stream("aac", rate=self._rate), target, begin
        self._stream.codec_context.layout = layout
        self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=self._rate)
        self._written: int | None = None  # samples so far

    def put(self, packet: Any) -> None:
        for chunk in packet.decode():
            time = None if chunk.pts is None else float(chunk.pts * chunk.time_base) - self._begin
            for part in self._resampler.resample(chunk):
                self._put_samples(part.to_ndarray(), None if time is None else round(time * self._rate))
                time = None

    def finish(self) -> None:
        if self._written is None:
            return
        for part in self._resampler.resample(None):
            self._put_samples(part.to_ndarray(), None)
        self._target.mux(self._stream.encode(None))

    def _put_samples(self, samples: np.ndarray, at: int | None) -> None:
        """Encode (channels, n) float32 whose first sample belongs at sample ``at``; None: right after the last."""
        if self._written is None:  # the first samples determine where the audio begins
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
        chunk = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format="fltp", layout=self._stream.codec_context.layout.name
        )
        chunk.sample_rate, chunk.pts, chunk.time_base = self._rate, self._written, Fraction(1, self._rate)
        self._written += samples.shape[1]
        self._target.mux(self._stream.encode(chunk))
