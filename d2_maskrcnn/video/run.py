"""One run of the demo: from a source through the model and the drawing to the outputs."""

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.predictor import Resizer
from d2_maskrcnn.tracking import Tracker
from d2_maskrcnn.video.frame import Frame, VideoInfo
from d2_maskrcnn.video.pipeline import Pipeline, Stage
from d2_maskrcnn.video.sinks.outputs import CocoResults, CsvRows, ImageFiles, JsonLines, Window, records_of
from d2_maskrcnn.video.sources.images import ImageSource
from d2_maskrcnn.video.workers import InProcess, WorkerPool
from d2_maskrcnn.visualization import Annotator

logger = logging.getLogger(__name__)

# Seconds for which a thread may keep the interpreter from the model's, whose many small operations ask for it each.
SWITCH_INTERVAL = 0.0005


class VideoLike(Protocol):
    """A video file, a stream or a camera."""

    info: VideoInfo
    problem: str

    def __iter__(self) -> Iterator[Frame]: ...


@dataclass
class Work:
    """What is done with each frame.

    Attributes:
        model: in this process or in several. resizer: prepares its input.
        class_names, category_ids: of the model's classes.
        threshold: score from which detections are shown.
        classes: numbers of the classes that are wanted; None for all.
        batch_size: images that the model gets together.
        tracking: whether objects of a video get numbers.
        draw, record: whether images, and whether records for files, are wanted.
        side_by_side: batches that are with the model processes at a time.
    """

    model: InProcess | WorkerPool
    resizer: Resizer
    class_names: list[str]
    category_ids: list[int]
    threshold: float = 0.5
    classes: np.ndarray | None = None
    batch_size: int = 1
    tracking: bool = False
    draw: bool = True
    record: bool = False
    side_by_side: int = 1
    rate: float = 0.0
    annotator: Annotator = field(init=False)
    tracker: Tracker = field(init=False)

    def __post_init__(self) -> None:
        self.annotator = Annotator(self.class_names)
        self.tracker = Tracker(self.threshold)
        self._last_time: float | None = None

    def stages(self) -> list[Stage]:
        """The pipeline's stages, in their order."""
        stages = [Stage("prepare", self._prepare, droppable=True), Stage("model", self._detect, self.batch_size, True)]
        if self.side_by_side > 1:
            stages[1] = Stage("model", self._send, self.batch_size, True)
            stages.append(Stage("collect", self._collect))
        stages.append(Stage("draw", self._finish))
        return stages

    def _prepare(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            frame.network_input = self.resizer(frame.image)
        return frames

    def _detect(self, frames: list[Frame]) -> list[Frame]:
        return self._collect(self._send(frames))

    def _send(self, frames: list[Frame]) -> list[Frame]:
        future = self.model.submit([f.network_input for f in frames], [f.size for f in frames])
        for number, frame in enumerate(frames):
            frame.network_input = (future, number)
        return frames

    def _collect(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            future: Future[Any] = frame.network_input[0]
            try:
                found = future.result()[frame.network_input[1]]
            except BrokenExecutor as error:
                raise UserError("--parallel: a model process died (out of memory?): use fewer of them.") from error
            frame.network_input = None
            frame.found = found if self.classes is None else found[np.isin(found.classes, self.classes)]
        return frames

    def _finish(self, frames: list[Frame]) -> list[Frame]:
        for frame in frames:
            assert frame.found is not None
            if self.tracking:
                frame.found, frame.shown_scores = self.tracker.update(frame.found, self._frames_since(frame))
            else:
                frame.found = frame.found[frame.found.scores >= self.threshold]
            if self.draw:
                self.annotator.draw(frame.image, frame.found, frame.shown_scores)
            if self.record:
                frame.records = records_of(frame, self.class_names, self.category_ids)
        return frames

    def _frames_since(self, frame: Frame) -> float:
        """How many frames have passed since the last one, as the clock has it: live sources drop some."""
        last, self._last_time = self._last_time, frame.time
        if last is None or not self.rate:
            return 1.0
        return float(np.clip((frame.time - last) * self.rate, 0.1, self.tracker.patience))


@dataclass
class Outputs:
    """What a frame is given to at the end; made before the work begins, so that bad names are known early."""

    image_files: ImageFiles | None = None
    video: Any = None
    json: JsonLines | CocoResults | None = None
    csv: CsvRows | None = None
    window: Window | None = None

    def write(self, frame: Frame) -> bool:
        """Hands a frame to all; False if the person at the window has had enough."""
        for writer in (self.image_files, self.video):
            if writer is not None:
                writer.write(frame)
        for table in (self.json, self.csv):
            if table is not None:
                table.write(frame, frame.records)
        return self.window is None or self.window.show(frame)

    def close_window(self) -> None:
        """Takes the window away, if there is one."""
        if self.window is not None:
            self.window.close()
            self.window = None

    def close(self) -> None:
        """Finishes all files, even if one of them fails."""
        with ExitStack() as stack:
            stack.callback(self.close_window)
            for output in (self.image_files, self.video, self.json, self.csv):
                if output is not None:
                    stack.callback(output.close)


def run_images(source: ImageSource, work: Work, outputs: Outputs) -> int:
    """Detects and draws in images.

    Returns:
        how many images were done.

    Raises:
        UserError: some could not be read (the others are done), or an output failed. KeyboardInterrupt: Ctrl-C.
    """
    done = _run(source, work, outputs, total=len(source), unit="image", live=False)
    if source.broken:
        raise UserError(f"{len(source.broken)} of {len(source)} images could not be read: {source.broken[0]}")
    return done


def run_video(source: VideoLike, work: Work, outputs: Outputs) -> int:
    """Detects, tracks and draws in a video, a stream or a camera's images.

    Returns:
        how many frames were done.

    Raises:
        UserError: the source is broken (what came before is kept), or an output failed. KeyboardInterrupt: Ctrl-C.
    """
    info = source.info
    work.rate = float(info.rate)
    done = _run(source, work, outputs, total=info.frames, unit="frame", live=info.live)
    if source.problem:
        raise UserError(f"{getattr(source, 'address', 'Video')}: {source.problem}. {done} frames were written.")
    return done


def _run(source: Any, work: Work, outputs: Outputs, *, total: int | None, unit: str, live: bool) -> int:
    capacity = 1 if work.side_by_side == 1 else 2 * work.side_by_side * work.batch_size
    done = 0
    with ExitStack() as stack:
        stack.callback(work.model.close)
        stack.callback(outputs.close)
        pipeline = stack.enter_context(Pipeline(source, work.stages(), capacity, live))
        interrupted = stack.enter_context(_ctrl_c(pipeline))
        stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_INTERVAL)
        bar = stack.enter_context(tqdm(total=total, unit=unit, dynamic_ncols=True, mininterval=0.5))
        for frame in pipeline:
            if not outputs.write(frame):  # what the model has seen is still written, but shown no more
                pipeline.interrupt()
                outputs.close_window()
            del frame
            done += 1
            bar.update()
            if live:
                bar.set_postfix(dropped=pipeline.dropped, refresh=False)
    if interrupted:
        logger.warning("Interrupted: %d %ss are done and kept.", done, unit)
        raise KeyboardInterrupt
    return done


@contextmanager
def _ctrl_c(pipeline: Pipeline) -> Iterator[list[int]]:
    """Lets the first Ctrl-C end the reading, so that files are finished; a second one ends at once.

    Yields:
        a list that is not empty after a Ctrl-C.
    """
    pressed: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        pressed.append(number)
        pipeline.interrupt()
        for name in handled:
            signal.signal(name, signal.default_int_handler)

    handled = (signal.SIGINT, signal.SIGTERM)
    before: Sequence[Any] = [signal.signal(name, stop) for name in handled]
    try:
        yield pressed
    finally:
        for name, handler in zip(handled, before, strict=True):
            signal.signal(name, handler)
