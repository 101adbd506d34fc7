import json
import logging
import re
import threading

import numpy as np
import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


class TestEventStorage:
    def test_no_storage_is_open(self):
        assert not has_event_storage()
        with pytest.raises(RuntimeError, match="with EventStorage"):
            get_event_storage()

    def test_nested_storages(self):
        with EventStorage() as outer:
            with EventStorage(7) as inner:
                assert get_event_storage() is inner
            assert get_event_storage() is outer and has_event_storage()
        assert not has_event_storage()

    def test_closed_after_an_error(self):
        with pytest.raises(ZeroDivisionError), EventStorage():
            _ = 1 / 0
        assert not has_event_storage()

    def test_fresh(self):
        storage = EventStorage(3)
        assert storage.iter == storage.iteration == 3
        assert storage.latest() == {} and dict(storage.histories()) == {}
        with pytest.raises(KeyError, match=r"no history of 'x'"):
            storage.history("x")

    def test_scalars(self):
        storage = EventStorage(10)
        for value in (4.0, torch.tensor(1.0), np.float64(3.0)):
            storage.put_scalar("loss", value)
            storage.put_scalars(lr=float(value) / 10, smoothing_hint=False)
            storage.step()
        storage.put_scalar("early", 5, cur_iter=2)
        storage.iter = 20
        assert storage.iter == 20
        assert storage.latest() == {"loss": (3.0, 12), "lr": (pytest.approx(0.3), 12), "early": (5.0, 2)}
        assert storage.latest_with_smoothing_hint(3)["loss"] == (3.0, 12)
        assert storage.latest_with_smoothing_hint(2) == {
            "loss": (2.0, 12),
            "lr": (pytest.approx(0.3), 12),
            "early": (5.0, 2),
        }
        assert storage.history("loss").values() == [(4.0, 10), (1.0, 11), (3.0, 12)]
        assert storage.smoothing_hints() == {"loss": True, "lr": False, "early": True}

    def test_hint_may_not_change(self):
        storage = EventStorage()
        storage.put_scalar("a", 1.0)
        with pytest.raises(ValueError, match="'a'"):
            storage.put_scalar("a", 1.0, smoothing_hint=False)

    def test_count_samples(self):
        storage = EventStorage()
        for iteration in (0, 10, 20, 21):
            storage.put_scalar("a", iteration, cur_iter=iteration)
        assert [storage.count_samples("a", window) for window in (1, 2, 11, 12, 100)] == [1, 2, 2, 3, 4]

    def test_name_scope(self):
        storage = EventStorage()
        with storage.name_scope("a/"):
            storage.put_scalar("x", 1)
            with storage.name_scope("b"):
                storage.put_scalar("x", 2)
        storage.put_scalar("x", 3)
        assert {name: value for name, (value, _) in storage.latest().items()} == {"a/x": 1, "a/b/x": 2, "x": 3}

    def test_images_and_histograms_until_cleared(self):
        storage = EventStorage(4)
        storage.put_image("image", np.zeros((3, 2, 2), np.uint8))
        storage.put_histogram("weights", torch.tensor([0.0, 0.1, 0.9, 1.0]), bins=2)
        assert [(name, iteration) for name, _, iteration in storage._vis_data] == [("image", 4)]
        (histogram,) = storage._histograms
        assert histogram["bucket_counts"] == [2.0, 2.0] and histogram["bucket_limits"] == [0.5, 1.0]
        assert histogram["sum"] == pytest.approx(2.0) and histogram["num"] == 4
        storage.clear_images()
        storage.clear_histograms()
        assert storage._vis_data == storage._histograms == []


class TestJSONWriter:
    @staticmethod
    def lines(path):
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_nothing_to_write(self, tmp_path):
        with EventStorage():
            writer = JSONWriter(str(tmp_path / "metrics.json"))
            writer.write()
            writer.close()
        assert (tmp_path / "metrics.json").read_text() == ""

    def test_lines(self, tmp_path):
        path = tmp_path / "metrics.json"
        writer = JSONWriter(str(path), window_size=2)
        with EventStorage(5) as storage:
            for value in (1.0, 2.0, 4.0):
                storage.put_scalar("loss", value)
                storage.step()
            storage.put_scalar("AP", 30.0, smoothing_hint=False)
            writer.write()
            writer.write()  # nothing new
            storage.step()
            storage.put_scalar("loss", 8.0)
            writer.write()
        writer.close()
        assert self.lines(path) == [
            {"iteration": 7, "loss": 3.0},
            {"iteration": 8, "AP": 30.0},
            {"iteration": 9, "loss": 8.0},
        ]

    @pytest.mark.parametrize(
        "left", ["", '{"iteration": 1, "a": 1.0}\n', '{"iteration": 1, "a": 1.0}\n{"iterat', '{"it']
    )
    def test_what_a_killed_process_left(self, tmp_path, left):
        path = tmp_path / "metrics.json"
        path.write_text(left)
        with EventStorage(2) as storage:
            writer = JSONWriter(str(path))
            storage.put_scalar("a", 2.0)
            writer.write()
            writer.close()
        whole = [json.loads(line) for line in left.splitlines() if line.endswith("}")]
        assert self.lines(path) == [*whole, {"iteration": 2, "a": 2.0}]


class TestTensorboardWriter:
    def test_nothing_to_write(self, tmp_path):
        with EventStorage():
            writer = TensorboardXWriter(str(tmp_path / "logs"))
            writer.write()
            writer.close()
        assert not (tmp_path / "logs").exists()

    def test_event_file(self, tmp_path):
        event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        writer = TensorboardXWriter(str(tmp_path), window_size=1)
        with EventStorage(3) as storage:
            storage.put_scalar("loss", 0.5)
            storage.put_image("image", np.full((3, 4, 5), 200, np.uint8))
            storage.put_histogram("weights", torch.arange(4.0))
            writer.write()
            writer.write()
            storage.step()
            storage.put_scalar("loss", 0.25)
            writer.write()
            assert storage._vis_data == storage._histograms == []
        writer.close()
        events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5), (4, 0.25)]
        assert [(event.step, event.width, event.height) for event in events.Images("image")] == [(3, 5, 4)]
        assert [event.histogram_value.num for event in events.Histograms("weights")] == [4]


class TestCommonMetricPrinter:
    @pytest.fixture
    def lines(self, caplog):
        logger = logging.getLogger("detectron2.utils.events")
        before = logger.level, logger.parent.propagate
        logger.setLevel(logging.INFO)
        logger.parent.propagate = True  # where an earlier test has set the logger up
        with caplog.at_level(logging.INFO, logger=logger.name):
            yield lambda: [record.getMessage() for record in caplog.records]
        logger.level, logger.parent.propagate = before

    def test_nothing_measured(self, lines):
        with EventStorage(3):
            CommonMetricPrinter().write()
        assert re.fullmatch(r"iter: 3(  max_mem: \d+M)?", lines()[0])

    def test_line(self, lines):
        printer = CommonMetricPrinter(max_iter=3600, window_size=3)
        with EventStorage(97) as storage:
            for loss in (9.0, 4.0, 1.0, 2.0):
                storage.put_scalars(total_loss=loss, loss_cls=loss / 2, time=2.0, data_time=0.25, acc=1.0)
                storage.put_scalar("lr", 0.00025, smoothing_hint=False)
                storage.step()
            storage.iter = 99
            printer.write()
            assert storage.latest()["eta_seconds"] == (7000.0, 99)
        assert re.fullmatch(
            r"eta: 1:56:40  iter: 99  total_loss: 2  loss_cls: 1  time: 2\.0000  data_time: 0\.2500  lr: 0\.00025  "
            r"max_mem: \d+M",
            lines()[0],
        )

    def test_time_left_without_times(self, lines):
        printer = CommonMetricPrinter(max_iter=100)
        with EventStorage() as storage:
            printer.write()
            threading.Event().wait(0.05)
            storage.iter = 10
            printer.write()
            assert 0.4 < storage.latest()["eta_seconds"][0] < 60  # 89 more iterations of about 5 ms
        first, second = lines()
        assert "eta" not in first and second.startswith("eta: 0:00:")

    def test_silent_after_the_last_iteration(self, lines):
        with EventStorage(100):
            CommonMetricPrinter(max_iter=100).write()
        assert lines() == []


def test_writers_of_ones_own():
    class Counter(EventWriter):
        count = 0

        def write(self):
            self.count += len(get_event_storage().latest())

    writer = Counter()
    with EventStorage() as storage:
        storage.put_scalars(a=1, b=2)
        writer.write()
    writer.close()
    assert writer.count == 2
    with pytest.raises(TypeError, match="abstract"):
        EventWriter()
