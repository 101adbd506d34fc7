"""Run a source through model, tracker and annotator into the sinks."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from d2_maskrcnn.data.formats.predictions import uncertainty
from d2_maskrcnn.data.windowed_images import ImageError
from d2_maskrcnn.errors import UserError, one_line
from d2_maskrcnn.results import to_records
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.tracking import Tracker
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.pipeline import Pipeline, Stage
from d2_maskrcnn.video.sinks.group import Sinks
from d2_maskrcnn.video.sources.images import ImageSource
from d2_maskrcnn.video.workers import InProcess, WorkerPool
from d2_maskrcnn.visualization import Annotator

logger = logging.getLogger(__name__)

# Seconds a thread may keep the interpreter from the model's thread, whose many small operations each request it.
SWITCH_INTERVAL = 0.0005
STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class ProcessDied(UserError):
    """Raised if a process of the model has ended."""


class VideoLike(Protocol):
    """A video file, a stream or a camera."""

    info: VideoInfo
    problem: str

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass
class Work:
    """Process frames: resize, detect, track, draw and convert to records.

    Attributes:
        model: runs in this process or in several.
        resizer: prepares the model's input; see :meth:`Predictor.prepare`.
        class_names, category_ids: of the model's classes.
        threshold: minimum score of the detections that are shown and written.
        classes: class numbers to keep; None for all.
        batch_size: images per forward pass.
        tracking: whether objects of a video get track ids.
        draw, record: whether images, and whether records, are needed.
        parallel: batches that are being processed at the same time.
        rate: frames per second, for tracking live sources.
        problems: messages about frames that could not be processed.
        detections: number of detections so far.
    """

    model: InProcess | WorkerPool
    resizer: Callable[[Any], Any]
    class_names: list[str]
    category_ids: list[int]
    threshold: float = 0.5
    classes: np.ndarray | None = None
    batch_size: int = 1
    tracking: bool = False
    draw: bool = True
    record: bool = False
    parallel: int = 1
    rate: float = 0.0
    problems: list[str] = field(default_factory=list)
    detections: int = 0

    def __post_init__(self) -> None:
        self.annotator = Annotator(self.class_names)
        self.tracker = Tracker(self.threshold)
        self._last_time: float | None = None

    def stages(self) -> list[Stage]:
        """Return the stages of the pipeline in order."""
        stages = [Stage("resize", self._resize, droppable=True), Stage("model", self._detect, self.batch_size, True)]
        if self.parallel > 1:
            stages[1] = Stage("model", self._submit, self.batch_size, True)
            stages.append(Stage("collect", self._collect))
        stages.append(Stage("finish", self._finish))
        return stages

    def _resize(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            frame.network_input = self.resizer(frame.model_image)
            frame.raw = None
        return frames

    def _detect(self, frames: list[Frame]) -> list[Frame]:
        return self._collect(self._submit(frames))

    def _submit(self, frames: list[Frame]) -> list[Frame]:
        inputs = [frame.network_input for frame in frames]
        future = self.model.submit(inputs, [frame.size for frame in frames])
        for number, frame in enumerate(frames):
            frame.network_input = (future, number, frame.network_input)
        return frames

    def _collect(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            future, number, network_input = frame.network_input
            frame.network_input = None
            try:
                detections = self._result(future, number, network_input, frame)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                height, width = frame.size
                self._skip(frame, f"{frame.name or f'frame {frame.index}'} ({width}x{height}): out of memory; skipped.")
                detections = Detections.empty(frame.size)
            except ImageError as error:
                self._skip(frame, str(error))
                detections = Detections.empty(frame.size)
            if self.classes is not None:
                detections = detections[np.isin(detections.classes, self.classes)]
            frame.detections = detections
        return frames

    def _skip(self, frame: Frame, problem: str) -> None:
        logger.error("%s", one_line(problem))
        frame.problem = problem
        self.problems.append(problem)

    def _result(self, future: "Future[Any]", number: int, network_input: np.ndarray, frame: Frame) -> Detections:
        """Return the detections of one frame of a batch; if the batch fails for a reason of its own, retry it alone."""
        try:
            return future.result()[number]
        except BrokenExecutor as error:
            raise ProcessDied("A model process died (out of memory?): use fewer of them.") from error
        except (MemoryError, RuntimeError) as error:
            if self.batch_size == 1 or not _is_out_of_memory(error):
                raise
        except ImageError:
            if self.batch_size == 1:
                raise
        return self.model.submit([network_input], [frame.size]).result()[0]

    def _finish(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            assert frame.detections is not None
            if self.tracking:
                frame.detections, frame.label_scores = self.tracker.update(frame.detections, self._frames_since(frame))
            else:
                frame.uncertainty = uncertainty(frame.detections.scores)
                frame.detections = frame.detections[frame.detections.scores >= self.threshold]
            self.detections += len(frame.detections)
            if self.draw:
                self._draw(frame)
            if self.record:
                frame.records = to_records(frame.detections, self.class_names, self.category_ids)
        return frames

    def _draw(self, frame: Frame) -> None:
        assert frame.detections is not None
        detections = frame.detections
        if frame.windowed is not None:
            if frame.problem:
                return
            try:
                frame.image = np.ascontiguousarray(frame.windowed.display()[:, :, ::-1])
            except ImageError as error:
                self._skip(frame, str(error))
                return
            detections = detections.resized(frame.image.shape[0], frame.image.shape[1])
        self.annotator.draw(frame.image, detections, frame.label_scores)

    def _frames_since(self, frame: Frame) -> float:
        """Return the number of frames since the last processed one by the clock: live sources drop some."""
        last, self._last_time = self._last_time, frame.time
        if last is None or not self.rate:
            return 1.0
        return float(np.clip((frame.time - last) * self.rate, 0.1, self.tracker.patience))


def run_images(source: ImageSource, work: Work, sinks: Sinks) -> int:
    """Process images.

    Returns:
        number of images processed.

    Raises:
        UserError: some could not be processed or drawn (all other results are written), or a sink failed.
        KeyboardInterrupt: the user stopped the run.
    """
    done = _run(source, work, sinks, total=len(source), unit="image", live=False)
    problems = [*source.broken, *work.problems]
    if problems:
        rest = "; the others are done" if len(problems) < len(source) else ""
        raise UserError(
            f"{len(problems)} of {len(source)} images could not be processed, the first: {problems[0]}{rest}"
        )
    if sinks.image_files is not None and (problems := sinks.image_files.problems):
        raise UserError(f"{len(problems)} of {len(source)} drawn images could not be written, the first: {problems[0]}")
    return done


def run_video(source: VideoLike, work: Work, sinks: Sinks) -> int:
    """Process a video, a stream or the images of a camera.

    Returns:
        number of frames processed.

    Raises:
        UserError: the source is broken (the frames before are kept), or a sink failed.
        KeyboardInterrupt: the user stopped the run.
    """
    info = source.info
    work.rate = float(info.rate)
    done = _run(source, work, sinks, total=info.frames, unit="frame", live=info.live)
    if source.problem:
        raise UserError(f"{getattr(source, 'address', 'Video')}: {source.problem}. {done} frames were written.")
    if work.problems:
        raise UserError(f"{len(work.problems)} of {done} frames have no detections, the first: {work.problems[0]}")
    return done


def _run(source: Any, work: Work, sinks: Sinks, *, total: int | None, unit: str, live: bool) -> int:
    capacity = 1 if work.parallel == 1 else 2 * work.parallel * work.batch_size
    done, start = 0, time.perf_counter()
    with ExitStack() as stack:
        stack.callback(work.model.close)
        stack.callback(sinks.close)
        pipeline = stack.enter_context(Pipeline(source, work.stages(), capacity, live))
        interrupted = stack.enter_context(_stop_signals(pipeline))
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_INTERVAL)
        bar = stack.enter_context(tqdm(total=total, unit=unit, dynamic_ncols=True, mininterval=0.5))
        for frame in _until_interrupted(pipeline, interrupted):
            if not sinks.write(frame):  # what the model has processed is still written, but no longer shown
                pipeline.interrupt()
                sinks.close_window()
            del frame
            done += 1
            bar.update()
            if live:
                bar.set_postfix(dropped=pipeline.dropped, refresh=False)
    seconds = time.perf_counter() - start
    logger.info(
        "%s%d %s%s, %d detections in %.1f s (%.2f %ss/s).",
        "Interrupted; kept " if interrupted else "Done: ",
        done, unit, "" if done == 1 else "s", work.detections, seconds, done / seconds, unit,
    )  # fmt: skip
    if interrupted:
        raise KeyboardInterrupt
    return done


def _until_interrupted(pipeline: Pipeline, received: Sequence[int]) -> Iterator[Frame]:
    """Yield the frames of a pipeline; a signal that ends the run may end the processes of the model first."""
    try:
        yield from pipeline
    except ProcessDied:
        if not received:
            raise


@contextmanager
def _stop_signals(pipeline: Pipeline) -> Iterator[list[int]]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP end the reading, so that files are completed; a second ends at once.

    Yields:
        a list that is not empty after a signal.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        pipeline.interrupt()
        for name in STOP_SIGNALS:
            signal.signal(name, signal.default_int_handler)

    before: Sequence[Any] = [signal.signal(name, stop) for name in STOP_SIGNALS]
    try:
        yield received
    finally:
        for name, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(name, handler)


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether PyTorch or Python failed to allocate memory: on CPUs PyTorch raises a plain RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
