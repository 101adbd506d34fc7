"""Statistics of weights compared with NumPy, and warnings about deliberately damaged layers."""

import copy

import numpy as np
import pytest
import torch

from d2_maskrcnn import UserError
from d2_maskrcnn.inspection import initial_weights
from d2_maskrcnn.inspection.statistics import histogram
from d2_maskrcnn.inspection.weights import (
    draw_overview,
    draw_weights,
    inspect_weights,
    read_state,
)
from detectron2.modeling import build_model


def flags_of(findings, name):
    return next(tensor for tensor in findings.tensors if tensor.name == name).flags


def test_nothing():
    findings = inspect_weights({})
    assert findings.tensors == [] and findings.parameters == 0


def test_numbers(model):
    findings = inspect_weights(model)
    state = model.state_dict()
    assert [tensor.name for tensor in findings.tensors] == list(state)
    assert findings.parameters == sum(value.numel() for value in state.values())
    for tensor in findings.tensors:
        values = state[tensor.name].double().numpy()
        assert tensor.min == pytest.approx(values.min()) and tensor.max == pytest.approx(values.max())
        assert tensor.mean == pytest.approx(values.mean(), abs=1e-7)
        assert tensor.std == pytest.approx(values.std(), rel=1e-5, abs=1e-7)
        assert sum(tensor.counts) == values.size and len(tensor.edges) == len(tensor.counts) + 1


@pytest.mark.parametrize(
    ("values", "counts"),
    [([], [0]), ([3.0, 3.0], [2]), ([1.0, 1.0000001], [2]), ([0.0, 1.0], [1, 0, 0, 1]), ([0.0, 1e-30], [1, 0, 0, 1])],
)
def test_histograms_of_values_that_are_close_together(values, counts):
    assert histogram(np.array(values, np.float32), 4)[1] == counts


def test_damaged_layers_are_flagged(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    dead, nan, large, filters = (
        "backbone.fpn_output2.weight", "backbone.fpn_output3.weight", "backbone.fpn_output4.weight",
        "backbone.fpn_output5.weight",
    )  # fmt: skip
    state[dead].zero_()
    state[nan][0, 0] = float("nan")
    state[large][0, 0, 0, 0] = 1e4
    state[filters][3] = 0
    findings = inspect_weights(state)
    assert flags_of(findings, dead) == ["dead: all zero"]
    assert flags_of(findings, nan) == ["9 of 2304 values are NaN"]
    assert flags_of(findings, large) == ["exploding: values up to 1e+04"]
    assert flags_of(findings, filters) == ["dead: 1 of 16 output channels have only zeros"]
    assert flags_of(findings, "backbone.fpn_lateral2.weight") == []
    kinds = findings.kinds
    assert (kinds["dead"], kinds["NaN"], kinds["exploding"]) == (2, 1, 1) and findings.as_dict()["flagged"] == kinds


def test_a_frozen_layer_is_flagged_by_comparison(model):
    other = copy.deepcopy(model).state_dict()
    frozen = "roi_heads.box_head.fc1.weight"
    moved = {name: value + 0.01 if value.is_floating_point() else value for name, value in other.items()}
    moved[frozen] = other[frozen].clone()
    findings = inspect_weights(moved, "b", other, "a.pth")
    assert flags_of(findings, frozen) == ["unchanged: equal to a.pth"]
    changed = next(t for t in findings.tensors if t.name == "roi_heads.box_head.fc2.weight")
    values = other["roi_heads.box_head.fc2.weight"].double()
    assert changed.max_change == pytest.approx(0.01, rel=1e-4)
    assert changed.change == pytest.approx(0.01 * values.numel() ** 0.5 / float(values.norm()), rel=1e-4)
    assert not any("unchanged" in flag for flag in changed.flags)


def test_untrained_tensors_are_flagged(cfg, model):
    initial = dict(build_model(cfg).state_dict())
    trained = {name: value + 1e-6 if value.dim() > 1 else value for name, value in initial.items()}
    frozen = "backbone.bottom_up.res3.1.conv2.weight"
    trained[frozen] = initial[frozen].clone()
    findings = inspect_weights(trained, initial=initial)
    assert flags_of(findings, frozen) == ["untrained: equal to its initialization"]
    assert [tensor.name for tensor in findings.flagged if len(tensor.shape) > 1] == [frozen]
    norm = "backbone.bottom_up.stem.conv1.norm.running_var"
    assert flags_of(findings, norm) == ["untrained: all values are the initial 1"]
    assert flags_of(findings, "roi_heads.box_head.fc1.bias") == ["untrained: all values are the initial 0"]


@pytest.mark.parametrize("trainer", [None, "another program's", {}, {"initial_seed": "x"}])
def test_without_a_seed_the_initial_weights_are_unknown(cfg, model, tmp_path, trainer):
    torch.save({"model": model.state_dict(), "trainer": trainer}, tmp_path / "model.pth")
    cfg = cfg.clone()
    cfg.SEED = -1
    assert initial_weights(cfg, str(tmp_path / "model.pth")) is None
    before = torch.random.get_rng_state()
    cfg.SEED = 5
    assert set(initial_weights(cfg, str(tmp_path / "model.pth"))) == set(model.state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_checkpoint_alone(model, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    state = read_state(str(tmp_path / "model.pth"))
    assert len(inspect_weights(state).tensors) == len(model.state_dict())
    with pytest.raises(UserError, match="no tensor in common"):
        inspect_weights(state, "model.pth", {"something": torch.zeros(1)}, "other.pth")


def test_figures(model):
    findings = inspect_weights(model)
    assert len(draw_weights(findings, "roi_heads.mask_head").axes) == 12
    assert draw_overview(findings).axes
