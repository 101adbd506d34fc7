import json
import signal

import pytest

from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.engine.hooks import reports
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter


class Broken(HookBase):
    """Fails at every call."""

    def __init__(self):
        self.calls = []

    def before_train(self):
        self.fail("before_train")

    def after_step(self):
        self.fail("after_step")

    def after_train(self):
        self.fail("after_train")

    def fail(self, name):
        self.calls.append((name, self.trainer.iter))
        raise RuntimeError("price_$5\nto_$10")


class BrokenWriter(EventWriter):
    def write(self):
        raise OSError("disk full")

    def close(self):
        raise OSError("disk full")


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_failing_report_is_one_warning(tiny_cfg, caplog, tmp_path):
    hook = Broken()
    trainer = Trainer(tiny_cfg("SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()"), report_hooks=[hook])
    trainer.train()
    assert hook.calls == [("before_train", 0), ("after_step", 0), ("after_step", 1), ("after_train", 2)]
    message = "Broken failed, the training continues without it (RuntimeError: price_$5 to_$10)"
    assert warnings(caplog).count(message) == 1
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_predictions_that_cannot_be_drawn_are_a_warning(trainer_of, caplog, monkeypatch):
    def fail(*_):
        raise ValueError("image too wide")

    monkeypatch.setattr(reports, "draw_test_sets", fail)
    trainer = trainer_of("SOLVER.MAX_ITER", 1)
    trainer.train()
    assert trainer.iter == 1
    assert any("DrawPredictions failed" in message for message in warnings(caplog))


def test_a_failing_writer_leaves_the_others_alone(tiny_cfg, caplog, tmp_path):
    class WithBrokenWriter(Trainer):
        def build_writers(self):
            return [BrokenWriter(), *super().build_writers()]

    cfg = tiny_cfg("SOLVER.MAX_ITER", 4, "D2_MASKRCNN.LOG_PERIOD", 1, "DATASETS.TEST", "()")
    WithBrokenWriter(cfg).train()
    assert sum("BrokenWriter failed" in message for message in warnings(caplog)) == 1
    assert [record["iteration"] for record in records(tmp_path / "out")] == [0, 1, 2, 3]


def test_every_evaluation_is_written(trainer_of, tmp_path):
    trainer_of("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 2).train()  # LOG_PERIOD is 20
    for name in ("segm/AP", "validation/total_loss"):
        assert [record["iteration"] for record in records(tmp_path / "out") if name in record] == [1, 3, 5]


@pytest.mark.parametrize("period", [1, 2, 20])
def test_a_stopped_training_ends_with_the_record_of_its_last_iteration(trainer_of, tmp_path, period):
    trainer = trainer_of("SOLVER.MAX_ITER", 50, "D2_MASKRCNN.LOG_PERIOD", period)
    step = trainer.run_step

    def run_step():
        if trainer.iter == 4:
            signal.raise_signal(signal.SIGTERM)
        step()

    trainer.run_step = run_step
    with pytest.raises(SystemExit):
        trainer.train()
    iterations = [record["iteration"] for record in records(tmp_path / "out")]
    assert iterations == {1: [0, 1, 2, 3, 4], 2: [1, 3, 4], 20: [4]}[period]
    assert all("total_loss" in record for record in records(tmp_path / "out"))
