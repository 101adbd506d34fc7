"""Weights: numbers against NumPy; a dead, an exploding, a broken and a frozen layer, each planted."""

import copy

import numpy as np
import pytest
import torch

from d2_maskrcnn import UserError
from d2_maskrcnn.inspection import initial_weights
from d2_maskrcnn.inspection.statistics import histogram
from d2_maskrcnn.inspection.untrained import kolmogorov_smirnov, spectral_excess
from d2_maskrcnn.inspection.weights import (
    draw_overview,
    draw_weights,
    inspect_weights,
    read_state,
)

SEEDED = torch.Generator().manual_seed(0)


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


def test_planted_faults_are_flagged(model):
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


def test_untrained_norms_biases_and_weights_are_flagged(cfg, model):
    from detectron2.modeling import build_model

    findings = inspect_weights(model, fresh=build_model(cfg).state_dict())
    assert flags_of(findings, "backbone.bottom_up.stem.conv1.norm.running_var") == [
        "untrained: all values are the initial 1"
    ]
    assert flags_of(findings, "roi_heads.box_head.fc1.bias") == ["untrained: all values are the initial 0"]
    assert "fresh initialisation" in flags_of(findings, "roi_heads.box_head.fc1.weight")[0]
    trained = {name: value * 1.3 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    assert (
        flags_of(inspect_weights(trained, fresh=build_model(cfg).state_dict()), "roi_heads.box_head.fc1.weight") == []
    )


def test_the_very_initialisation_tells_untrained_weights_apart(cfg, model):
    from detectron2.modeling import build_model

    fresh = dict(build_model(cfg).state_dict())
    trained = {name: value + 1e-6 if value.dim() > 1 else value for name, value in fresh.items()}
    frozen = "backbone.bottom_up.res3.1.conv2.weight"
    trained[frozen] = fresh[frozen].clone()
    findings = inspect_weights(trained, fresh=fresh, exact=True)
    assert flags_of(findings, frozen) == ["untrained: equal to its initialisation"]
    assert [tensor.name for tensor in findings.flagged if len(tensor.shape) > 1] == [frozen]


def test_what_moves_between_two_checkpoints_is_not_called_untrained():
    generator = torch.Generator().manual_seed(2)
    fresh, early, elsewhere = ({"a.weight": torch.randn(64, 64, generator=generator)} for _ in range(3))
    late = {"a.weight": early["a.weight"] + 0.01 * torch.randn(64, 64, generator=generator)}
    assert "perhaps untrained" in flags_of(inspect_weights(late, fresh=fresh), "a.weight")[0]
    assert flags_of(inspect_weights(late, "late", early, "early", fresh), "a.weight") == []
    assert "perhaps untrained" in flags_of(inspect_weights(late, "late", elsewhere, "other", fresh), "a.weight")[0]


@pytest.mark.parametrize("trainer", [None, "somebody's", {}, {"initial_seed": "x"}])
def test_the_seed_of_other_programs_checkpoints_is_not_known(cfg, model, tmp_path, trainer):
    torch.save({"model": model.state_dict(), "trainer": trainer}, tmp_path / "model.pth")
    before = torch.random.get_rng_state()
    fresh, exact = initial_weights(cfg, str(tmp_path / "model.pth"))
    assert set(fresh) == set(model.state_dict()) and not exact
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_weight_that_gradients_of_low_rank_have_changed_is_not_called_untrained():
    generator = torch.Generator().manual_seed(1)
    fresh, same, noise = (torch.randn(96, 128, 1, 1, generator=generator) for _ in range(3))
    step = torch.randn(96, 1, generator=generator) @ torch.randn(1, 128, generator=generator)
    trained = noise + 0.4 * step[..., None, None]
    assert spectral_excess(same) < 4 < spectral_excess(trained)
    state = {"same.weight": same, "trained.weight": trained / trained.std()}
    findings = inspect_weights(state, fresh=dict.fromkeys(state, fresh))
    assert "perhaps untrained" in flags_of(findings, "same.weight")[0]
    assert flags_of(findings, "trained.weight") == []
    assert spectral_excess(torch.zeros(4, 4)) == np.inf and spectral_excess(torch.ones(1, 4)) == 0


def test_kolmogorov_smirnov_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(500, generator=SEEDED), torch.randn(700, generator=SEEDED) + 0.1
    distance, limit = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(stats.ks_2samp(a.numpy(), b.numpy()).statistic)
    assert limit == pytest.approx(1.949 * np.sqrt(1200 / 350000))


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
