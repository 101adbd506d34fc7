import logging

import pytest
import torch
from torch import nn

from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.utils.events import get_event_storage


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss_a": (self.weight * x).sum(), "loss_b": self.weight.square().sum()}


class Batches:
    """An endless loader that counts how often it is started."""

    def __init__(self, *values):
        self.values = [torch.tensor([value]) for value in values]
        self.started = 0

    def __iter__(self):
        self.started += 1
        while True:
            yield from self.values


class Recorder(HookBase):
    def __init__(self, log, name, fail_at=None):
        self.log, self.name, self.fail_at = log, name, fail_at

    def record(self, moment):
        self.log.append((self.name, moment, self.trainer.iter, get_event_storage().iter))
        if self.fail_at == (moment, self.trainer.iter):
            raise RuntimeError("planned")

    def before_train(self):
        self.record("before_train")

    def after_train(self):
        self.record("after_train")

    def before_step(self):
        self.record("before_step")

    def after_backward(self):
        self.record("after_backward")

    def after_step(self):
        self.record("after_step")


def make_trainer(cls=SimpleTrainer, batches=None, **settings):
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return cls(net, batches or Batches(1.0, 2.0, 3.0), optimizer, **settings)


def values_of(trainer, name):
    return [value for value, _ in trainer.storage.history(name).values()]


@pytest.mark.parametrize(("start", "end"), [(2, 2), (0, 1), (3, 5)])
def test_hooks_are_called_in_order_with_the_iteration(start, end):
    log = []
    trainer = make_trainer()
    trainer.register_hooks([Recorder(log, "A"), None, Recorder(log, "B")])
    trainer.train(start, end)

    steps = [(m, i) for i in range(start, end) for m in ("before_step", "after_backward", "after_step")]
    expected = [("before_train", start), *steps, ("after_train", end)]
    assert log == [(hook, moment, i, i) for moment, i in expected for hook in "AB"]
    assert trainer.iter == end


def test_after_train_runs_after_an_error_and_the_error_goes_on():
    log = []
    trainer = make_trainer()
    trainer.register_hooks([Recorder(log, "A", fail_at=("after_step", 1)), Recorder(log, "B")])
    with pytest.raises(RuntimeError, match="planned"):
        trainer.train(0, 5)
    assert log[-3:] == [("A", "after_step", 1, 1), ("A", "after_train", 1, 1), ("B", "after_train", 1, 1)]
    assert trainer.iter == 1


def test_after_train_runs_after_ctrl_c():
    log = []

    class Interrupt(HookBase):
        def after_step(self):
            raise KeyboardInterrupt

    trainer = make_trainer()
    trainer.register_hooks([Interrupt(), Recorder(log, "A")])
    with pytest.raises(KeyboardInterrupt):
        trainer.train(0, 5)
    assert log[-1] == ("A", "after_train", 0, 0)


def test_only_hooks_can_be_registered():
    with pytest.raises(TypeError, match="nonsense"):
        make_trainer().register_hooks(["nonsense"])


def test_losses_and_weights_of_two_iterations():
    trainer = make_trainer()
    trainer.train(0, 2)
    # w = 1: losses 1 * 1 and 1; gradient 1 + 2. w = 0.7: losses 0.7 * 2 and 0.49; gradient 2 + 1.4.
    assert values_of(trainer, "loss_a") == pytest.approx([1.0, 1.4])
    assert values_of(trainer, "loss_b") == pytest.approx([1.0, 0.49])
    assert values_of(trainer, "total_loss") == pytest.approx([2.0, 1.89])
    assert trainer.model.weight.item() == pytest.approx(0.36)
    assert len(values_of(trainer, "data_time")) == 2


def test_a_single_loss_may_be_a_bare_tensor():
    class Bare(Net):
        def forward(self, x):
            return (self.weight * x).sum()

    net = Bare()
    trainer = SimpleTrainer(net, Batches(1.0), torch.optim.SGD(net.parameters(), lr=0.1))
    trainer.train(0, 2)
    assert values_of(trainer, "total_loss") == pytest.approx([1.0, 0.9])


def test_the_loader_is_started_once_and_not_before_it_is_needed():
    batches = Batches(1.0)
    trainer = make_trainer(batches=batches)
    assert batches.started == 0
    trainer.train(0, 3)
    assert batches.started == 1
    other = Batches(5.0)
    trainer.reset_data_loader(lambda: other)
    trainer.train(3, 4)
    assert (batches.started, other.started) == (1, 1)


def test_a_loss_that_is_not_finite_stops_the_training():
    trainer = make_trainer(batches=Batches(1.0, float("nan")))
    with pytest.raises(FloatingPointError, match=r"iteration 1.*loss_a"):
        trainer.train(0, 5)
    assert trainer.model.weight.isfinite().all()


def test_a_model_in_evaluation_mode_is_refused():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(RuntimeError, match="Net"):
        trainer.train(0, 1)


def test_metrics_can_be_gathered_seldom():
    trainer = make_trainer(gather_metric_period=2)
    trainer.train(0, 5)
    assert [iteration for _, iteration in trainer.storage.history("total_loss").values()] == [1, 3]


@pytest.mark.parametrize("before_forward", [False, True])
def test_gradients_of_the_forward_pass_survive_on_demand(before_forward):
    class LeavesGradient(Net):
        def forward(self, x):
            self.weight.grad = torch.full((1,), 100.0)
            return {"loss": (self.weight * x).sum()}

    net = LeavesGradient()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    SimpleTrainer(net, Batches(1.0), optimizer, zero_grad_before_forward=before_forward).train(0, 1)
    assert net.weight.item() == pytest.approx(1 - 0.1 * (101 if before_forward else 1))


class Counter(HookBase):
    def __init__(self):
        self.count = 0

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_state_of_trainer_optimizer_and_hooks():
    trainer = make_trainer()
    trainer.register_hooks([Counter()])
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert (state["iteration"], state["hooks"]) == (3, {"Counter": {"count": 3}})

    resumed, counter = make_trainer(), Counter()
    resumed.register_hooks([counter])
    resumed.load_state_dict(state)
    assert (resumed.iter, counter.count) == (3, 3)


def test_state_of_a_hook_that_is_gone_is_reported(caplog):
    trainer = make_trainer()
    trainer.load_state_dict(
        {"iteration": 1, "hooks": {"GoneHook": {"x": 1}}, "optimizer": trainer.optimizer.state_dict()}
    )
    assert "GoneHook" in caplog.text


def test_the_base_class_does_not_know_an_iteration():
    with pytest.raises(NotImplementedError):
        TrainerBase().train(0, 1)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_this_machine(precision):
    class Dtypes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.seen = []

        def forward(self, x):
            y = self.layer(x.expand(8, 4))
            self.seen.append(y.dtype)
            return {"loss": y.float().square().mean()}

    net = Dtypes()
    trainer = AMPTrainer(
        net, Batches(1.0), torch.optim.SGD(net.parameters(), lr=0.1), precision=precision, log_grad_scaler=True
    )
    assert trainer.grad_scaler.is_enabled() == (precision == torch.float16)
    trainer.train(0, 6)
    losses = values_of(trainer, "total_loss")
    assert net.seen == [precision] * 6
    assert losses[-1] < losses[0]
    assert len(values_of(trainer, "[metric]grad_scaler")) == 6

    trainer.load_state_dict(trainer.state_dict())  # with an inactive scaler, whose state is empty, too


def test_the_error_is_logged_in_one_line(caplog):
    trainer = make_trainer()
    trainer.register_hooks([Recorder([], "A", fail_at=("before_step", 0))])
    with caplog.at_level(logging.ERROR), pytest.raises(RuntimeError):
        trainer.train(0, 1)
    assert "iteration 0 by RuntimeError" in caplog.text
