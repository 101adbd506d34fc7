"""Run the model on images that arrive one by one, in batches of those that wait.

A batch is what has arrived while the one before ran, so no image waits for others when the model is free.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.structures.detections import Detections

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 2**28  # of decoded and resized images


@dataclass
class Job:
    """An image that waits for the model.

    Attributes:
        image: as returned by ``Predictor.prepare``.
        size: (H, W) of the original image.
        result: gets the detections; a job whose result is cancelled before its turn is left out.
    """

    image: np.ndarray
    size: tuple[int, int]
    result: "Future[Detections]"


class Batcher:
    """A thread that runs the model.

    Args:
        predictor: the model.
        batch_size: most images per forward pass.
        observe: called after each forward pass with the number of images and the seconds.
    """

    def __init__(self, predictor: Predictor, batch_size: int, observe: Callable[[int, float], None]) -> None:
        self._predictor, self._batch_size, self._observe = predictor, batch_size, observe
        self._jobs: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model")
        self.seconds_per_image = 0.0  # moving average

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Add a job; blocks while the images that wait need too much memory.

        Raises:
            RuntimeError: the batcher is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(job))
            if self._closed:
                raise RuntimeError("the server is stopping")
            self._jobs.append(job)
            self._changed.notify_all()

    def close(self) -> None:
        """Cancel the jobs that wait and end the thread after the batch that it runs."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.result.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _has_room(self, job: Job) -> bool:
        waiting = sum(each.image.nbytes for each in self._jobs)
        return not self._jobs or waiting + job.image.nbytes <= MAX_WAITING_BYTES

    def _run(self) -> None:
        while jobs := self._next_batch():
            start = time.monotonic()
            self._process(jobs)
            seconds = time.monotonic() - start
            rate = seconds / len(jobs)
            self.seconds_per_image = 0.8 * self.seconds_per_image + 0.2 * rate if self.seconds_per_image else rate
            self._observe(len(jobs), seconds)

    def _next_batch(self) -> list[Job]:
        """Wait for jobs; return the one that waits longest and those that share its forward pass, [] at the end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._jobs)
                if self._closed:
                    return []
                chosen = next(self._predictor.plan([job.image for job in self._jobs], self._batch_size))
                jobs = [self._jobs[index] for index in chosen]
                self._jobs = [job for index, job in enumerate(self._jobs) if index not in chosen]
                self._changed.notify_all()
                if running := [job for job in jobs if job.result.set_running_or_notify_cancel()]:
                    return running

    def _process(self, jobs: Sequence[Job]) -> None:
        try:
            results = self._predictor.predict([job.image for job in jobs], [job.size for job in jobs])
        # Whatever it is, such as too little memory, it ends the jobs concerned and not the server.
        except Exception as error:
            if len(jobs) > 1:
                logger.warning("A batch of %d images failed; they are processed one by one.", len(jobs), exc_info=True)
                for job in jobs:
                    self._process([job])
            else:
                jobs[0].result.set_exception(error)
            return
        for job, detections in zip(jobs, results, strict=True):
            job.result.set_result(detections)
