import torch

from d2_maskrcnn.modeling.training_events import events_wanted, muted_events, put_events
from detectron2.utils.events import EventStorage


def test_without_a_storage_nothing_happens():
    assert not events_wanted()
    put_events({"a": 1.0})


def test_numbers_and_tensors():
    with EventStorage() as storage:
        put_events({})
        put_events({"a": 2, "b": torch.tensor(3), "c": torch.tensor(0.5, requires_grad=True)})
        assert {name: value for name, (value, _) in storage.latest().items()} == {"a": 2.0, "b": 3.0, "c": 0.5}


def test_muted():
    with EventStorage() as storage:
        with muted_events():
            assert not events_wanted()
            put_events({"a": 1.0})
        assert events_wanted()
        assert storage.latest() == {}
