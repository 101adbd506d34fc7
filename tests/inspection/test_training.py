"""The TensorBoard hook in a real training: what the event file holds, and that the weights are none the worse."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.inspection import inspect_weights, read_state
from d2_maskrcnn.inspection.model import initial_weights
from d2_maskrcnn.inspection.training import InspectTraining, inspection_hooks


def train(config_file, opts, folder, **keys):
    pairs = [str(item) for pair in keys.items() for item in (pair[0].replace("__", "."), pair[1])]
    cfg = load_config(config_file, [*opts, *pairs])
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = ()
    cfg.D2_MASKRCNN.DATA.VAL_JSON = cfg.D2_MASKRCNN.DATA.VAL_IMAGES = ""
    register_own_data(cfg)
    trainer = Trainer(cfg, report_hooks=inspection_hooks(cfg))
    trainer.train()
    return trainer


@pytest.fixture
def opts(tiny_opts):
    return [*tiny_opts, "D2_MASKRCNN.INSPECT.MAX_SHARE", "1.0", "SOLVER.IMS_PER_BATCH", "4"]


def test_an_epochs_end_is_written(config_file, opts, tmp_path):
    trainer = train(config_file, opts, tmp_path / "a", D2_MASKRCNN__LOG_PERIOD=2)
    events = EventAccumulator(str(tmp_path / "a"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    ends = [2, 5]  # 12 images in batches of 4: after the third and the sixth iteration
    names = ("1_anchor_labels", "1_proposals", "2_refinement", "7_result")
    for name in names:
        assert [event.step for event in events.Images(f"inspection_0/{name}")] == ends
    fc = "roi_heads.box_head.fc1.weight"
    for kind in ("weights", "gradients"):
        histograms = events.Histograms(f"{kind}/{fc}")
        assert [event.step for event in histograms] == ends
        parameter = trainer.model.get_parameter(fc)
        values = (parameter if kind == "weights" else parameter.grad).detach()
        last = histograms[-1].histogram_value
        assert last.num == values.numel()
        assert last.min == pytest.approx(float(values.min())) and last.max == pytest.approx(float(values.max()))
    assert {"total_loss", "lr"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("total_loss")] == [1, 3, 5]


def test_the_weights_are_those_of_a_training_without(config_file, opts, tmp_path):
    with_it = train(config_file, opts, tmp_path / "a").model.state_dict()
    without = train(config_file, opts, tmp_path / "b", D2_MASKRCNN__INSPECT__ENABLED=False).model.state_dict()
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_what_a_training_left_untouched_is_flagged_and_nothing_else(config_file, opts, tmp_path):
    """Without ``SEED``: the checkpoint tells the seed that its first weights were drawn with."""
    trainer = train(config_file, opts, tmp_path, MODEL__BACKBONE__FREEZE_AT=2, SOLVER__MAX_ITER=3, SEED=-1)
    path = str(tmp_path / "model_final.pth")
    fresh, exact = initial_weights(trainer.cfg, path)
    assert exact
    findings = inspect_weights(read_state(path), fresh=fresh, exact=exact)
    frozen = {t.name for t in findings.tensors if "untrained: equal to its initialisation" in t.flags}
    untouched = ("backbone.bottom_up.stem", "backbone.bottom_up.res2")
    weights = {name for name, value in trainer.model.state_dict().items() if value.dim() > 1}
    assert frozen == {name for name in weights if name.startswith(untouched)} != set()
    assert not any("perhaps" in flag for tensor in findings.tensors for flag in tensor.flags)


class Clock:
    """A trainer whose iterations take a given time, and a report that takes a given time."""

    def __init__(self, monkeypatch, cfg, step, cost):
        self.now, self.iter, self.model, self.storage = 0.0, 0, torch.nn.Linear(1, 1), None
        self.step, self.hook = step, InspectTraining(cfg, images_in_epoch=8)
        self.hook.trainer = self
        monkeypatch.setattr("d2_maskrcnn.inspection.training.time.perf_counter", lambda: self.now)
        monkeypatch.setattr(self.hook, "report", lambda *_: setattr(self, "now", self.now + cost))

    def run(self, iterations):
        self.hook.before_train()
        for self.iter in range(iterations):
            self.now += self.step
            self.hook.after_step()
        return self.hook


@pytest.mark.parametrize(("cost", "reports"), [(0.0, 100), (0.01, 100), (0.1, None), (1.0, None)])
def test_it_keeps_to_its_share_of_the_time(cfg, monkeypatch, cost, reports):
    clock = Clock(monkeypatch, cfg, step=1.0, cost=cost)
    hook = clock.run(100)
    assert hook.spent <= 0.02 * clock.now
    assert hook.reports == reports if reports else 0 < hook.reports < 100
