"""From the bytes of images to answers: decode in threads, detect in batches, encode in threads."""

import asyncio
import os
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import anyio
import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from d2_maskrcnn.data.image_reading import read_image
from d2_maskrcnn.data.raw_images import read_raw, to_rgb
from d2_maskrcnn.errors import UserError
from d2_maskrcnn.image_files import CONTENT
from d2_maskrcnn.predictor import Predictor
from d2_maskrcnn.serve.admission import Admission
from d2_maskrcnn.serve.batching import Batcher, Job
from d2_maskrcnn.serve.bodies import Upload
from d2_maskrcnn.serve.documents import ImageFormat, annotated_image, coco_json, select
from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.settings import Settings
from d2_maskrcnn.structures.detections import Detections

READERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a request asks for.

    Attributes:
        threshold: detections must exceed it.
        masks: whether masks are part of the answer.
        kind: format of an annotated image; None for JSON.
    """

    threshold: float
    masks: bool
    kind: ImageFormat | None = None


class Service:
    """The model and the threads around it.

    Args:
        predictor: the model.
        settings: the limits.
        metrics: get the batches and the number of waiting requests.
    """

    def __init__(self, predictor: Predictor, settings: Settings, metrics: Metrics) -> None:
        self.predictor, self.settings = predictor, settings
        self.batcher = Batcher(predictor, settings.batch_size, metrics.observe_batch)
        self.admission = Admission(settings, metrics, lambda: self.batcher.seconds_per_image)
        # Two pools, so that answers do not wait for the images that arrive.
        self._readers = ThreadPoolExecutor(READERS, "read")
        self._writers = ThreadPoolExecutor(READERS, "write")

    def start(self) -> None:
        """Process one black image, since the first takes longer, and start."""
        side, raw = 64, self.predictor.raw_channels
        black = np.zeros((side, side, raw or 3), np.float32 if raw else np.uint8)
        self.predictor.predict([self.predictor.prepare(black)], [(side, side)])
        self.batcher.start()

    def close(self) -> None:
        """Stop all threads; what waits in them is dropped."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()
        self._readers.shutdown()
        self._writers.shutdown(cancel_futures=True)

    async def answer(self, request: Request, uploads: Sequence[Upload], options: Options) -> bytes:
        """Detect objects in the images of a request and encode the answer.

        Args:
            request: watched for a client that goes away.
            uploads: its files, one if ``options.kind`` is an image format.
            options: what it asks for.

        Raises:
            UserError: an image cannot be read, or is too large.
            Refusal: it took longer than the limit (503).
            ClientDisconnect: the client has gone; its images are not processed any more.
        """
        try:
            with anyio.fail_after(self.settings.timeout):
                return await _unless_disconnected(request, self._answer(uploads, options))
        except TimeoutError as error:
            text = f"The answer was not ready after {self.settings.timeout:g} s, the limit of this server; try again."
            raise self.admission.overload(text) from error

    async def _answer(self, uploads: Sequence[Upload], options: Options) -> bytes:
        tasks = [asyncio.ensure_future(self._detect(upload)) for upload in uploads]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writers, self._encode, uploads, results, options)

    async def _detect(self, upload: Upload) -> Detections:
        result: Future[Detections] = Future()
        try:
            await asyncio.get_running_loop().run_in_executor(self._readers, self._read, upload, result)
            return await asyncio.wrap_future(result)
        finally:
            result.cancel()

    def _read(self, upload: Upload, result: "Future[Detections]") -> None:
        image = self._decode(upload)
        if not result.cancelled():
            pixels = image if self.predictor.raw_channels else image[:, :, ::-1]
            self.batcher.submit(Job(self.predictor.prepare(pixels), image.shape[:2], result))

    def _decode(self, upload: Upload) -> np.ndarray:
        try:
            if raw := self.predictor.raw_channels:
                return read_raw(upload.content, raw, self.settings.max_pixels)
            return read_image(upload.content, max_pixels=self.settings.max_pixels)
        except UserError as error:
            text = str(error)
            named = f"{upload.name:.100}: {text.removeprefix(f'{CONTENT}: ')}" if upload.name else text
            raise UserError(named) from error

    def _encode(self, uploads: Sequence[Upload], results: Sequence[Detections], options: Options) -> bytes:
        chosen = [select(each, options.threshold, options.masks) for each in results]
        if options.kind is None:
            return coco_json(self.predictor, [upload.name for upload in uploads], chosen)
        # Decoded again: waiting for the model, an image takes much more memory than its file.
        image = self._decode(uploads[0])
        shown = to_rgb(image) if self.predictor.raw_channels else image
        return annotated_image(self.predictor, shown, chosen[0], options.kind)


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, and cancel it if the client goes away first.

    Raises:
        ClientDisconnect: it did.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
