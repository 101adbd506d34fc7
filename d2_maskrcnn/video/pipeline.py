"""Run stages concurrently, each in a thread, on items that stay in order.

    source -> [channel] -> stage -> [channel] -> stage -> ... -> iteration in the caller's thread

Each channel buffers a few items, so a slow stage blocks the stages before it and memory stays constant however long the
video is. A live source is never blocked: up to the model, channels drop stale items. An error travels down the pipeline
behind the items that preceded it, so those are finished first.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

WAKE_UP = 0.1  # seconds between checks for an interrupt while the caller waits for an item

T = TypeVar("T")


class Closed(Exception):
    """Signal that a channel is closed: nothing more can be put or taken."""


class Channel(Generic[T]):
    """Queue at most ``capacity`` items between two threads.

    Args:
        capacity: maximum number of items; ``put`` blocks while the channel is full.
        leaky: drop the oldest item instead of blocking. :attr:`dropped` counts the dropped ones.

    Raises:
        ValueError: ``capacity`` is below 1.
    """

    def __init__(self, capacity: int, leaky: bool = False) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity, self.leaky = capacity, leaky
        self.dropped = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False  # no more puts; queued items can still be taken
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Append an item, blocking while the channel is full unless it is leaky.

        Raises:
            Closed: the consumer has closed the channel.
        """
        with self._changed:
            if self.leaky and len(self._items) >= self.capacity:
                self._items.popleft()
                self.dropped += 1
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)
            if self._closed:
                raise Closed
            self._items.append(item)
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Block until an item could be put without waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)

    def get(self, timeout: float | None = None) -> T:
        """Remove and return the oldest item, waiting up to ``timeout`` seconds (None: forever).

        Raises:
            Closed: the channel is empty and no item will follow. TimeoutError: no item arrived in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or self._ended or bool(self._items), timeout):
                raise TimeoutError
            if self._closed or not self._items:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self) -> None:
        """Declare that no item will be put any more; queued items can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Discard the queued items and raise :class:`Closed` in every waiting thread."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: name of its thread.
        work: maps a list of at most ``batch`` items to a list of the same length.
        batch: maximum number of items processed together.
        droppable: whether items that have not passed this stage may be discarded: at an interrupt and, for a live
            source, when newer items are available.
    """

    name: str
    work: Callable[[list[Any]], list[Any]]
    batch: int = 1
    droppable: bool = False


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Pipeline:
    """Run the items of ``source`` through ``stages``. Iterate once; use it in a ``with`` statement or close it.

    Args:
        source: yields the items; it is read in its own thread.
        stages: the steps in order.
        capacity: items buffered in front of each stage.
        live: whether stale items are dropped instead of waited for.
    """

    def __init__(self, source: Iterable[Any], stages: Sequence[Stage], capacity: int = 2, live: bool = False) -> None:
        self.live = live
        self._source = source
        self._stages = list(stages)
        # A waiting frame of a live source goes stale, so only one may wait; what the model has processed is kept.
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
        """Number of items of a live source that were skipped because newer ones were available."""
        return sum(channel.dropped for channel in self._channels)

    @property
    def waiting(self) -> list[int]:
        """Number of items buffered in front of each stage and of the caller."""
        return [len(channel) for channel in self._channels]

    def interrupt(self) -> None:
        """Stop reading; items in or behind the last droppable stage are still yielded."""
        self._interrupted.set()

    def close(self) -> None:
        """Stop all threads and discard their items, after waiting for work in progress."""
        self._interrupted.set()
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            if thread.is_alive() and thread.name != "source":  # a source may hang in a read that cannot be interrupted
                thread.join()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        """Yield the items in order as they leave the last stage.

        Raises:
            Exception: whatever the source or a stage raised, after the items that preceded it.
        """
        for thread in self._threads:
            thread.start()
        while True:
            try:
                item = self._channels[-1].get(timeout=WAKE_UP)
            except TimeoutError:
                if self._interrupted.is_set() and self._threads[0].is_alive():
                    self._channels[0].end()  # the source hangs in a read; don't wait for it
                continue
            except Closed:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
            del item  # release it before waiting for the next one: a 4K frame takes 25 MB

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
                    target.wait_for_room()  # take the newest item only when the next stage is free
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
        """Take up to ``stage.batch`` items (of a live source only available ones) and an error behind them."""
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
            target.wait_for_room()  # in a leaky channel it would replace the item before it
            target.put(failure)
