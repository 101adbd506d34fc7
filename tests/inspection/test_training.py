"""The TensorBoard hook in a real training: content of the event file, and no influence on the weights."""

from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from d2_maskrcnn.config.loading import load_config
from d2_maskrcnn.data import register_own_data
from d2_maskrcnn.engine import Trainer
from d2_maskrcnn.inspection import initial_weights, inspect_weights, read_state
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
    return [
        *tiny_opts,
        "D2_MASKRCNN.INSPECT.ENABLED",
        "True",
        "D2_MASKRCNN.INSPECT.MAX_SHARE",
        "1.0",
        "SOLVER.IMS_PER_BATCH",
        "4",
    ]


def test_each_epoch_is_written(config_file, opts, tmp_path):
    trainer = train(config_file, opts, tmp_path / "a", D2_MASKRCNN__LOG_PERIOD=2)
    events = EventAccumulator(str(tmp_path / "a"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    tags = events.Tags()
    ends = [2, 5]  # 12 images in batches of 4: after the third and the sixth iteration
    names = ("anchor_labels", "proposals", "box_refinement", "result")
    for name in names:
        assert [event.step for event in events.Images(f"inspection_0/{name}")] == ends
    head = [p for name, p in trainer.model.named_parameters() if name.startswith("roi_heads.box_head.")]
    for kind, tensors in (("weights", head), ("gradients", [parameter.grad for parameter in head])):
        histograms = events.Histograms(f"{kind}/roi_heads.box_head")
        assert [event.step for event in histograms] == ends
        values = torch.cat([tensor.detach().flatten() for tensor in tensors])
        last = histograms[-1].histogram_value
        assert last.num == values.numel()
        assert last.min == pytest.approx(float(values.min())) and last.max == pytest.approx(float(values.max()))
    assert len(tags["histograms"]) < 40  # one per part of the model, not per parameter
    assert {"total_loss", "lr"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("total_loss")] == [1, 3, 5]


def test_the_hook_does_not_change_the_weights(config_file, opts, tmp_path):
    with_it = train(config_file, opts, tmp_path / "a").model.state_dict()
    without = train(config_file, opts, tmp_path / "b", D2_MASKRCNN__INSPECT__ENABLED=False).model.state_dict()
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


def test_frozen_layers_are_flagged_as_untrained(config_file, opts, tmp_path):
    """Without ``SEED``: the checkpoint stores the seed of its initial weights."""
    trainer = train(config_file, opts, tmp_path, MODEL__BACKBONE__FREEZE_AT=2, SOLVER__MAX_ITER=3, SEED=-1)
    path = str(tmp_path / "model_final.pth")
    findings = inspect_weights(read_state(path), initial=initial_weights(trainer.cfg, path))
    flagged = {t.name for t in findings.tensors if "untrained: equal to its initialization" in t.flags}
    frozen = ("backbone.bottom_up.stem", "backbone.bottom_up.res2")
    weights = {name for name, value in trainer.model.state_dict().items() if value.dim() > 1}
    assert flagged == {name for name in weights if name.startswith(frozen)} != set()


class FakeTraining:
    """Simulate a trainer and a hook on a clock of their own, with given durations of iterations and images."""

    def __init__(self, monkeypatch, cfg, step, cost):
        self.now, self.iter, self.model = 0.0, 0, torch.nn.Linear(1, 1)
        self.histograms: list[str] = []
        self.storage = SimpleNamespace(put_histogram=lambda name, *_, **__: self.histograms.append(name))
        self.step, self.hook = step, InspectTraining(cfg, images_in_epoch=8)
        self.hook.trainer = self
        monkeypatch.setattr("d2_maskrcnn.inspection.training.time.perf_counter", lambda: self.now)
        monkeypatch.setattr(self.hook, "put_images", lambda *_: setattr(self, "now", self.now + cost))

    def run(self, iterations):
        self.hook.before_train()
        for self.iter in range(iterations):
            self.now += self.step
            self.hook.after_step()
        return self.hook


@pytest.mark.parametrize(("cost", "reports"), [(0.0, 100), (0.01, 100), (0.1, None), (1.0, None)])
def test_images_keep_to_their_share_of_the_time(cfg, monkeypatch, cost, reports):
    training = FakeTraining(monkeypatch, cfg, step=1.0, cost=cost)
    hook = training.run(100)
    assert hook.spent <= 0.02 * training.now
    assert hook.reports == reports if reports else 0 < hook.reports < 100
    assert training.histograms == ["weights/weight", "weights/bias"] * 100


def test_a_failure_is_a_warning(cfg, monkeypatch, caplog):
    training = FakeTraining(monkeypatch, cfg, step=1.0, cost=0.0)
    monkeypatch.setattr(training.hook, "put_images", lambda *_: 1 / 0)
    training.run(1)
    assert "drawing images of the training failed (ZeroDivisionError" in caplog.text
