"""The event storage of a training, and its writers."""

from detectron2.utils.event_storage import EventStorage, get_event_storage, has_event_storage
from detectron2.utils.event_writers import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]
