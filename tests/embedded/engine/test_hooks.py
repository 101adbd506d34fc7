import itertools
import json
import math

import pytest
import torch
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter


class Net(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1) if norm else nn.Identity()

    def forward(self, x):
        return {"loss": (self.weight * self.norm(x)).square().mean()}


def make_trainer(batches=None, norm=False):
    net = Net(norm)
    batches = batches if batches is not None else itertools.repeat(torch.ones(2, 1))
    return SimpleTrainer(net, batches, torch.optim.SGD(net.parameters(), lr=0.1))


class Metric(HookBase):
    """Write one given value per iteration to the event storage."""

    def __init__(self, *values):
        self.values = values

    def after_step(self):
        self.trainer.storage.put_scalar("val/AP", self.values[self.trainer.iter])


def scalars(trainer, name):
    return trainer.storage.history(name).values()


def test_callbacks_get_the_trainer_at_their_moment():
    calls = []
    trainer = make_trainer()
    trainer.register_hooks(
        [
            hooks.CallbackHook(),
            hooks.CallbackHook(
                before_train=lambda t: calls.append(("before_train", t.iter)),
                before_step=lambda t: calls.append(("before_step", t.iter)),
                after_step=lambda t: calls.append(("after_step", t.iter)),
                after_train=lambda t: calls.append(("after_train", t.iter)),
            ),
        ]
    )
    trainer.train(0, 1)
    assert calls == [("before_train", 0), ("before_step", 0), ("after_step", 0), ("after_train", 1)]


@pytest.mark.parametrize(("iterations", "timed"), [(0, 0), (1, 0), (5, 4)])
def test_timer_leaves_the_warmup_out(iterations, timed, caplog):
    trainer = make_trainer()
    trainer.register_hooks([hooks.IterationTimer(warmup_iter=2)])
    with caplog.at_level("INFO", logger="detectron2"):
        trainer.train(0, iterations)
    assert "Total training time" in caplog.text
    assert (f"training speed: {timed} iterations" in caplog.text) == (timed > 0)
    if timed:
        assert [iteration for _, iteration in scalars(trainer, "time")] == [1, 2, 3, 4]
        assert all(seconds > 0 for seconds, _ in scalars(trainer, "time"))


def test_writers_write_periodically_and_at_the_end(tmp_path):
    trainer = make_trainer()
    path = tmp_path / "metrics.json"
    trainer.register_hooks(
        [Metric(1.0, 2.0, 3.0, 4.0, 5.0), hooks.PeriodicWriter([JSONWriter(str(path), window_size=1)], period=2)]
    )
    trainer.train(0, 5)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["iteration"], line["val/AP"]) for line in lines] == [(1, 2.0), (3, 4.0), (4, 5.0)]


def test_writers_must_be_writers():
    with pytest.raises(TypeError, match="nonsense"):
        hooks.PeriodicWriter(["nonsense"])


def test_checkpoints_periodically_and_at_the_end(tmp_path):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), optimizer=trainer.optimizer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2, max_to_keep=1)])
    trainer.train(0, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000003.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert checkpointer.load(str(tmp_path / "model_0000003.pth")) == {"iteration": 3}


@pytest.mark.parametrize(
    ("mode", "values", "best", "best_iter"),
    [
        ("max", (math.nan,) * 4, None, None),
        ("max", (1.0, 3.0, 2.0, 2.0), 3.0, 1),
        ("max", (1.0, 3.0, 2.0, 4.0), 4.0, 3),  # at the end
        ("min", (1.0, 3.0, 0.5, 0.7), 0.5, 2),
        ("max", (math.nan, 1.0, math.inf, 0.5), 1.0, 1),
    ],
)
def test_best_checkpoint(tmp_path, mode, values, best, best_iter):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    hook = hooks.BestCheckpointer(1, checkpointer, "val/AP", mode, file_prefix="best")
    trainer.register_hooks([Metric(*values), hook])
    trainer.train(0, 4)
    assert (hook.best_metric, hook.best_iter) == (best, best_iter)
    assert (tmp_path / "best.pth").exists() == (best is not None)
    if best is not None:
        assert checkpointer.load(str(tmp_path / "best.pth"))["iteration"] == best_iter


def test_best_value_survives_a_restart(tmp_path):
    trainer = make_trainer()
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    trainer.register_hooks([Metric(5.0, 4.0), hooks.BestCheckpointer(1, checkpointer, "val/AP")])
    trainer.train(0, 2)

    resumed = make_trainer()
    hook = hooks.BestCheckpointer(1, checkpointer, "val/AP")
    resumed.register_hooks([Metric(0.0, 0.0, 4.5), hook])
    resumed.load_state_dict(trainer.state_dict())
    resumed.train(2, 3)
    assert (hook.best_metric, hook.best_iter) == (5.0, 0)


def test_best_checkpoint_of_a_metric_that_is_not_there(tmp_path, caplog):
    trainer = make_trainer()
    trainer.register_hooks([hooks.BestCheckpointer(1, DetectionCheckpointer(trainer.model, str(tmp_path)), "no/such")])
    trainer.train(0, 2)
    assert "no/such" in caplog.text
    assert not list(tmp_path.iterdir())


def test_best_checkpoint_knows_two_modes():
    with pytest.raises(ValueError, match="average"):
        hooks.BestCheckpointer(1, None, "val/AP", mode="average")


def test_learning_rate_moves_and_is_recorded_as_it_was_used():
    trainer = make_trainer()
    trainer.register_hooks([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))])
    trainer.train(0, 4)
    assert [rate for rate, _ in scalars(trainer, "lr")] == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert trainer.state_dict()["hooks"]["LRScheduler"]["last_epoch"] == 4


def test_learning_rate_hook_takes_the_scheduler_of_the_trainer_and_resumes():
    def make():
        trainer = make_trainer()
        trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, step_size=2, gamma=0.1)
        trainer.register_hooks([hooks.LRScheduler()])
        return trainer

    trainer = make()
    trainer.train(0, 3)
    resumed = make()
    resumed.load_state_dict(trainer.state_dict())
    resumed.train(3, 5)
    assert [rate for rate, _ in scalars(resumed, "lr")] == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize(
    ("groups", "expected"),
    [([(1, 0.1)], 0), ([(1, 0.1), (3, 0.2), (2, 0.3)], 1), ([(1, 0.1), (1, 0.2), (1, 0.2)], 1)],
)
def test_the_rate_of_the_largest_group_is_shown(groups, expected):
    parameters = [{"params": [nn.Parameter(torch.ones(1)) for _ in range(n)], "lr": lr} for n, lr in groups]
    assert hooks.LRScheduler.get_best_param_group_id(torch.optim.SGD(parameters, lr=1.0)) == expected


@pytest.mark.parametrize(("period", "iterations"), [(0, [5]), (2, [2, 4, 5]), (5, [5]), (7, [5])])
def test_evaluation_is_called_on_time_and_its_numbers_are_stored(period, iterations):
    trainer = make_trainer()
    calls = []

    def evaluate():
        calls.append(trainer.iter + (trainer.iter < 5))
        return {"bbox": {"AP": 10.0 * len(calls)}}

    trainer.register_hooks([hooks.EvalHook(period, evaluate)])
    trainer.train(0, 5)
    assert calls == iterations
    assert [value for value, _ in scalars(trainer, "bbox/AP")] == [10.0 * (n + 1) for n in range(len(iterations))]


def test_no_evaluation_after_an_error():
    class Fail(HookBase):
        def before_step(self):
            if self.trainer.iter == 4:
                raise RuntimeError("planned")

    calls = []
    trainer = make_trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append(1)), Fail()])
    with pytest.raises(RuntimeError):
        trainer.train(0, 5)
    assert not calls


@pytest.mark.parametrize(("results", "error"), [({"bbox": {"AP": "high"}}, ValueError), ([1.0], TypeError)])
def test_evaluation_must_return_numbers(results, error):
    trainer = make_trainer()
    trainer.register_hooks([hooks.EvalHook(0, lambda: results)])
    with pytest.raises(error):
        trainer.train(0, 1)


def test_precise_statistics_are_those_of_the_batches():
    values = torch.tensor([[1.0, 3.0], [5.0, 11.0], [2.0, 4.0]])[..., None]  # (batches, 2, 1)
    trainer = make_trainer(norm=True)
    hook = hooks.PreciseBN(0, trainer.model, itertools.cycle(values), num_iter=3)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    norm = trainer.model.norm
    assert norm.running_mean.item() == pytest.approx(values.mean().item(), rel=1e-5)
    assert norm.running_var.item() == pytest.approx(values.var(correction=0).item(), rel=1e-5)
    assert len(scalars(trainer, "total_loss")) == 2  # none of the passes for the statistics


def test_precise_statistics_without_such_layers_does_nothing():
    trainer = make_trainer()
    trainer.register_hooks([hooks.PreciseBN(1, trainer.model, iter(()), num_iter=3)])
    trainer.train(0, 2)


def test_profilers_write_traces(tmp_path):
    trainer = make_trainer()
    trainer.register_hooks([hooks.AutogradProfiler(lambda t: t.iter == 1, str(tmp_path), use_cuda=False)])
    trainer.train(0, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["profiler_iter1.json"]
    assert json.loads((tmp_path / "profiler_iter1.json").read_text())["traceEvents"]

    trainer = make_trainer()
    trainer.register_hooks([hooks.TorchProfiler(lambda t: t.iter == 0, str(tmp_path / "tb"))])
    trainer.train(0, 2)
    assert list((tmp_path / "tb" / "log" / "profiler_iter0").glob("*.json"))
