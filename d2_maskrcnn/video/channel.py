"""The bounded queue between two stages of the pipeline."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The channel was closed: nothing more comes out, or goes in."""


class Channel(Generic[T]):
    """A queue of at most ``capacity`` items between threads.

    Args:
        capacity: items at most; whoever puts more waits.
        leaky: instead of waiting, a full channel drops its oldest item. :attr:`dropped` counts them.
    """

    def __init__(self, capacity: int, leaky: bool = False) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity, self.leaky = capacity, leaky
        self.dropped = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False  # what is inside can still be taken
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Adds an item, waiting for room (not if leaky).

        Raises:
            Closed: the other side has gone away.
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
        """Waits until an item could be put at once."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self.capacity)

    def get(self, timeout: float | None = None) -> T:
        """Takes the oldest item, waiting for one.

        Raises:
            Closed: there is none and none will come. TimeoutError: none came within ``timeout`` seconds.
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
        """Nothing more will be put; what is inside can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Throws away what is inside and wakes everybody with :class:`Closed`."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
