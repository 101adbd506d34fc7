"""Count the requests that are accepted and not answered yet, and refuse further ones at the limit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from d2_maskrcnn.serve.metrics import Metrics
from d2_maskrcnn.serve.refusals import Refusal
from d2_maskrcnn.serve.settings import Settings


class Admission:
    """The requests that are accepted and not answered yet; used from the event loop only.

    Args:
        settings: ``max_queue`` and ``max_buffered_bytes`` are used.
        metrics: get the number of waiting requests.
        seconds_per_image: returns how long an image takes, for ``Retry-After``.

    Attributes:
        stopping: whether new requests are refused because the server stops.
    """

    def __init__(self, settings: Settings, metrics: Metrics, seconds_per_image: Callable[[], float]) -> None:
        self._settings, self._metrics, self._seconds_per_image = settings, metrics, seconds_per_image
        self.waiting = 0
        self.buffered_bytes = 0
        self.stopping = False

    @property
    def full(self) -> bool:
        """Whether the next request would be refused."""
        return self.waiting >= self._settings.max_queue

    @contextmanager
    def admit(self) -> "Iterator[Ticket]":
        """Accept a request for the duration of the ``with`` block.

        Raises:
            Refusal: the queue is full, or the server is stopping (503).
        """
        if self.stopping:
            raise Refusal(503, "The server is stopping; try again.", retry_after=1)
        if self.full:
            raise self.overload(f"{self.waiting} requests are waiting, the limit of this server; try again later.")
        ticket = Ticket(self)
        self._count(1)
        try:
            yield ticket
        finally:
            self._count(-1)
            self.buffered_bytes -= ticket.bytes

    def overload(self, message: str) -> Refusal:
        """Return a refusal with an estimate of when the queue will be shorter."""
        return Refusal(503, message, retry_after=self.waiting / 2 * self._seconds_per_image())

    def add_bytes(self, count: int) -> None:
        """Count bytes of a body.

        Raises:
            Refusal: the bodies of all requests are too large together (503).
        """
        limit = self._settings.max_buffered_bytes
        if self.buffered_bytes + count > limit:
            raise self.overload(f"The waiting requests have more than {limit / 2**20:g} MiB; try again later.")
        self.buffered_bytes += count

    def _count(self, change: int) -> None:
        self.waiting += change
        self._metrics.waiting.set(self.waiting)


class Ticket:
    """An accepted request and the number of bytes of its body."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def add_bytes(self, count: int) -> None:
        """See :meth:`Admission.add_bytes`."""
        self._admission.add_bytes(count)
        self.bytes += count
