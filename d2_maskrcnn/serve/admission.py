"""Count the requests that are accepted and not answered yet, and refuse further ones at the limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.refusals import Refusal
from d2_maskrcnn.serve.settings import Settings


class Admission:
    """The requests that are accepted and not answered yet; used from the event loop only.

    Args:
        settings: ``max_queue`` and ``max_buffered_bytes`` are used.
        metrics: get the numbers of waiting and of queued requests.
        seconds_per_image: returns how long an image takes, for ``Retry-After``.

    Attributes:
        waiting: number of accepted requests without an answer, those among them whose body is still arriving.
        queued: number of those whose body has arrived; ``max_queue`` limits it.
        buffered_bytes: of the bodies of all waiting requests.
        stopping: whether new requests are refused because the server stops.
    """

    def __init__(self, settings: Settings, metrics: Metrics, seconds_per_image: Callable[[], float]) -> None:
        self._settings, self._metrics, self._seconds_per_image = settings, metrics, seconds_per_image
        self.waiting = self.queued = 0
        self.buffered_bytes = 0
        self.stopping = False

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self.queued >= self._settings.max_queue

    def check(self) -> None:
        """Refuse a request that would not be accepted.

        Raises:
            Refusal: the queue is full, or the server is stopping (503).
        """
        if self.stopping:
            raise Refusal(503, "The server is stopping; try again.", retry_after=1)
        self.check_queue()

    def check_queue(self) -> None:
        """Refuse a request for which the queue has no place.

        Raises:
            Refusal: the queue is full (503).
        """
        if self.full:
            raise self.overload(f"{self.queued} requests are waiting, the limit of this server; try again later.")

    @contextmanager
    def admit(self) -> "Iterator[Ticket]":
        """Accept a request for the duration of the ``with`` block; :meth:`Ticket.enter_queue` when its body is there.

        Raises:
            Refusal: as in :meth:`check`.
        """
        self.check()
        ticket = Ticket(self)
        self.count(waiting=1)
        try:
            yield ticket
        finally:
            self.count(waiting=-1, queued=-int(ticket.queued))
            self.buffered_bytes -= ticket.bytes

    def overload(self, message: str) -> Refusal:
        """Return a refusal with an estimate of when the queue will be shorter."""
        return Refusal(503, message, retry_after=self.queued / 2 * self._seconds_per_image())

    def add_bytes(self, count: int) -> None:
        """Count bytes of a body.

        Raises:
            Refusal: the bodies of all requests are too large together (503).
        """
        limit = self._settings.max_buffered_bytes
        if self.buffered_bytes + count > limit:
            raise self.overload(f"The waiting requests have more than {limit / 2**20:g} MiB; try again later.")
        self.buffered_bytes += count

    def count(self, waiting: int = 0, queued: int = 0) -> None:
        """Add to the numbers of requests."""
        self.waiting += waiting
        self.queued += queued
        self._metrics.waiting.set(self.waiting)
        self._metrics.queued.set(self.queued)


class Ticket:
    """An accepted request: the number of bytes of its body, and whether it is in the queue."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0
        self.queued = False

    def add_bytes(self, count: int) -> None:
        """See :meth:`Admission.add_bytes`."""
        self._admission.add_bytes(count)
        self.bytes += count

    def enter_queue(self) -> None:
        """Take a place in the queue until the request is answered: slow uploads must not occupy them.

        Raises:
            Refusal: the queue is full (503).
        """
        self._admission.check_queue()
        self._admission.count(queued=1)
        self.queued = True
