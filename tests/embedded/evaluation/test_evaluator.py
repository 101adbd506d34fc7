import pytest
import torch
from torch import nn

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset


class Sum(DatasetEvaluator):
    def __init__(self, name="sum"):
        self.name = name
        self.total = -1.0

    def reset(self):
        self.total = 0.0

    def process(self, inputs, outputs):
        self.total += sum(outputs)

    def evaluate(self):
        return {self.name: {"total": self.total}}


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm1d(1)
        self.weight = nn.Parameter(torch.ones(1))
        self.states = []

    def forward(self, batch):
        self.states.append((self.training, torch.is_grad_enabled()))
        return [2.0 * value for value in batch]


@pytest.mark.parametrize(("batches", "total"), [([], 0.0), ([[1.0]], 2.0), ([[1.0, 2.0], [3.0]] * 10, 120.0)])
def test_every_batch_is_processed_once(batches, total):
    assert inference_on_dataset(Doubler(), batches, Sum()) == {"sum": {"total": total}}


def test_the_model_is_in_evaluation_mode_without_gradients_and_gets_its_modes_back():
    model = Doubler()
    model.train()
    model.frozen.eval()
    inference_on_dataset(model, [[1.0], [2.0]], Sum())
    assert model.states == [(False, False)] * 2
    assert model.training
    assert not model.frozen.training


def test_modes_come_back_after_an_error():
    model = Doubler()
    with pytest.raises(RuntimeError), inference_context(model):
        assert not model.training
        raise RuntimeError
    assert model.training


def test_a_plain_function_several_evaluators_or_none():
    batches = [[1.0], [2.0]]
    assert inference_on_dataset(lambda batch: batch, batches, [Sum("a"), Sum("b")]) == {
        "a": {"total": 3.0},
        "b": {"total": 3.0},
    }
    assert inference_on_dataset(lambda batch: batch, batches, None) == {}


def test_callbacks_in_their_order():
    calls = []
    moments = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {moment: (lambda moment=moment: calls.append(moment)) for moment in moments}
    inference_on_dataset(lambda batch: batch, [[1.0], [2.0]], Sum(), callbacks)
    assert calls == ["on_start", *["before_inference", "after_inference"] * 2, "on_end"]


def test_an_evaluator_without_results():
    assert inference_on_dataset(lambda batch: batch, [[1.0]], DatasetEvaluator()) == {}


def test_results_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="sum"):
        inference_on_dataset(lambda batch: batch, [[1.0]], DatasetEvaluators([Sum(), Sum()]))


def test_progress_and_times_are_logged(caplog):
    with caplog.at_level("INFO", logger="detectron2"):
        inference_on_dataset(Doubler(), [[1.0]] * 8, Sum())
    assert "8 batches" in caplog.text
    assert "ETA" in caplog.text
    assert "s/batch" in caplog.text
