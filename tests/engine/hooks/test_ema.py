import pytest
import torch
from torch import nn

from d2_maskrcnn.engine.hooks.ema import WeightAverage
from d2_maskrcnn.errors import UserError


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


def test_formula():
    model = small()
    average = WeightAverage(model, decay=0.5)
    expected = model[0].weight.detach().clone()
    for update in range(1, 6):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    assert torch.allclose(average.values["0.weight"], expected)
    assert average.updates == 5


def test_follows_statistics_and_counters_but_not_frozen_weights():
    model = small()
    model[0].weight.requires_grad_(False)
    average = WeightAverage(model, decay=0.9)
    assert set(average.values) == set(model.state_dict()) - {"0.weight"}
    model(torch.ones(2, 1, 3, 3))
    average.update()
    assert int(average.values["1.num_batches_tracked"]) == 1
    assert not torch.equal(average.values["1.running_mean"], torch.zeros(2))


def test_applied_and_put_back_bit_for_bit():
    model = small()
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model[0].weight.mul_(3)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(model[0].weight, average.values["0.weight"])
        raise RuntimeError
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_bad_decay(decay):
    with pytest.raises(UserError, match=f"DECAY is {decay}"):
        WeightAverage(small(), decay)


EMA = ["D2_MASKRCNN.EMA.ENABLED", True, "D2_MASKRCNN.EMA.DECAY", 0.9]


def test_evaluated_and_saved_beside_the_weights(trainer_of, tiny_cfg, tmp_path):
    trainer = trainer_of(*EMA, "SOLVER.MAX_ITER", 3)
    trainer.train()
    latest = trainer.storage.latest()
    assert {"segm/AP", "ema/segm/AP", "validation/total_loss", "ema/validation/total_loss"} <= set(latest)
    assert latest["validation/total_loss"] != latest["ema/validation/total_loss"]

    out = tmp_path / "out"
    saved = torch.load(out / "model_final_ema.pth", weights_only=True)["model"]
    assert saved.keys() == trainer.model.state_dict().keys()
    kept = torch.load(out / "model_final.pth", weights_only=True)["ema"]
    assert kept["updates"] == 3
    assert all(torch.equal(saved[name], value) for name, value in kept["values"].items())
    assert any(not torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())

    # It is a weight file like any other, and the average starts from the weights that were loaded.
    other = trainer_of(*EMA, "OUTPUT_DIR", tmp_path / "other", "MODEL.WEIGHTS", out / "model_final_ema.pth")
    assert other.checkpointer.last_report.is_complete
    assert all(torch.equal(saved[name], value) for name, value in other.average.values.items())
