"""Stages that work at the same time, each in a thread, on frames that stay in order.

    source -> [channel] -> stage -> [channel] -> stage -> ... -> iteration in the caller's thread

Each channel holds a few frames, so a slow stage holds up those before it and memory stays the same however long the
video is. A live source is never held up: up to the model, channels drop what is stale. An error travels down the line
behind the frames that came before it, so they are finished first.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from d2_maskrcnn.video.channel import Channel, Closed

WAKE_UP = 0.1  # seconds between looks for an interrupt while the caller waits for a frame


@dataclass(frozen=True)
class Stage:
    """One step of the work.

    Attributes:
        name: of its thread.
        work: takes a list of at most ``batch`` items and gives back as many.
        batch: items that are taken together.
        droppable: whether items that have not been through this stage are thrown away at an interrupt, and, of a live
            source, when newer ones are there.
    """

    name: str
    work: Callable[[list[Any]], list[Any]]
    batch: int = 1
    droppable: bool = False


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Pipeline:
    """Runs ``source`` through ``stages``. Iterate over it once; close it when done (or use it in a ``with``).

    Args:
        source: gives the items; read in a thread of its own.
        stages: in their order.
        capacity: items that wait in front of each stage.
        live: whether stale items are dropped rather than waited for.
    """

    def __init__(self, source: Iterable[Any], stages: Sequence[Stage], capacity: int = 2, live: bool = False) -> None:
        self.live = live
        self._source = source
        self._stages = list(stages)
        # A frame of a live source that waits goes stale, so only one may; what the model has seen is not thrown away.
        self._channels: list[Channel[Any]] = [
            Channel(1 if live and stage.droppable else max(capacity, stage.batch), leaky=live and index == 0)
            for index, stage in enumerate(self._stages)
        ] + [Channel(capacity)]
        self._interrupted = threading.Event()
        self._threads = [threading.Thread(target=self._read, name="source", daemon=True)] + [
            threading.Thread(target=self._run, args=(i, stage), name=stage.name, daemon=True)
            for i, stage in enumerate(self._stages)
        ]

    @property
    def dropped(self) -> int:
        """Items of a live source that were left out because newer ones were there."""
        return sum(channel.dropped for channel in self._channels)

    @property
    def waiting(self) -> list[int]:
        """How many items wait in front of each stage and of the caller."""
        return [len(channel) for channel in self._channels]

    def interrupt(self) -> None:
        """Reads no more; what has been through the last droppable stage, or is in it, still comes out."""
        self._interrupted.set()

    def close(self) -> None:
        """Stops all threads, throwing away what they work on. Waits for work that is going on."""
        self._interrupted.set()
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            if thread.is_alive() and thread.name != "source":  # a source may hang in a read that cannot be ended
                thread.join()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        """The items, in order, as they come out of the last stage.

        Raises:
            whatever the source or a stage raised, after the items before it.
        """
        for thread in self._threads:
            thread.start()
        while True:
            try:
                item = self._channels[-1].get(timeout=WAKE_UP)
            except TimeoutError:
                if self._interrupted.is_set() and self._threads[0].is_alive():
                    self._channels[0].end()  # the source hangs in a read: do not wait for it
                continue
            except Closed:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
            del item  # what waits for the next one must not hold the last: a 4K frame is 25 MB

    def _read(self) -> None:
        target = self._channels[0]
        try:
            for item in self._source:
                if self._interrupted.is_set():
                    break
                target.put(item)
                del item
        except Closed:
            return
        except BaseException as error:
            self._pass_on(target, _Failure(error))
        target.end()

    def _run(self, index: int, stage: Stage) -> None:
        source, target = self._channels[index], self._channels[index + 1]
        try:
            while True:
                if self.live and stage.droppable:
                    target.wait_for_room()  # take the newest one only when it can be handed on
                items, failure = self._take(source, stage)
                done = stage.work(items) if items else []
                del items
                while done:
                    target.put(done.pop(0))
                if failure is not None:
                    target.put(failure)
        except Closed:
            pass
        except BaseException as error:
            self._pass_on(target, _Failure(error))
            source.close()
        target.end()

    def _take(self, source: Channel[Any], stage: Stage) -> tuple[list[Any], _Failure | None]:
        """Up to ``stage.batch`` items (of a live source only those that are there), and an error behind them."""
        items: list[Any] = []
        while len(items) < stage.batch:
            try:
                item = source.get(timeout=0 if items and self.live else None)
            except TimeoutError:
                break
            except Closed:
                if items:
                    break
                raise
            if isinstance(item, _Failure):
                return items, item
            if stage.droppable and self._interrupted.is_set():
                continue
            items.append(item)
        return items, None

    @staticmethod
    def _pass_on(target: Channel[Any], failure: _Failure) -> None:
        with contextlib.suppress(Closed):
            target.put(failure)
