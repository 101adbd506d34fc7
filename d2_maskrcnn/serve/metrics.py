"""Metrics of the server in Prometheus' format."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one application, in a registry of their own.

    Attributes:
        requests: counter of answers by ``endpoint`` and ``status``.
        request_seconds: histogram of the time to answer, by ``endpoint``.
        waiting: gauge of accepted requests without an answer.
        queued: gauge of those whose body has arrived.
        batch_images: histogram of the number of images per forward pass.
        batch_seconds: histogram of the time of a forward pass.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        common: Any = {"namespace": "d2_maskrcnn", "registry": self.registry}
        self.requests = Counter("requests", "Answers by endpoint and status.", ["endpoint", "status"], **common)
        self.request_seconds = Histogram(
            "request_seconds", "Time to answer a request.", ["endpoint"], buckets=SECONDS, **common
        )
        self.waiting = Gauge("requests_waiting", "Accepted requests without an answer.", **common)
        self.queued = Gauge("requests_queued", "Waiting requests whose body has arrived.", **common)
        self.batch_images = Histogram("batch_images", "Images per forward pass.", buckets=IMAGES, **common)
        self.batch_seconds = Histogram("batch_seconds", "Time of a forward pass.", buckets=SECONDS, **common)

    def observe_batch(self, images: int, seconds: float) -> None:
        """Record a forward pass."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all values in the text format."""
        return generate_latest(self.registry)
