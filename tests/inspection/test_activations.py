"""Statistics of layers against NumPy, and layers that deserve a warning."""

import copy

import numpy as np
import pytest
import torch

from d2_maskrcnn import UserError
from d2_maskrcnn.inspection import observe
from d2_maskrcnn.inspection.activations import (
    channel_grid,
    describe_layer,
    draw_activations,
    inspect_activations,
    layer_tensors,
    unused_layers,
)


def test_numbers(observation):
    tensors = layer_tensors(observation)
    layers = {layer.name: layer for layer in inspect_activations(observation)}
    assert {"stem", "res2", "res5", "p2", "p6", "proposal_generator.rpn_head.conv on p2", "roi_heads.box_head"} <= set(
        layers
    )
    for name, layer in layers.items():
        values = tensors[name].double().numpy()
        assert layer.min == pytest.approx(values.min()) and layer.max == pytest.approx(values.max())
        assert layer.mean == pytest.approx(values.mean(), abs=1e-6) and layer.std == pytest.approx(
            values.std(), rel=1e-4
        )
        assert layer.zeros == pytest.approx((values == 0).mean())
    assert layers["res2"].shape == [16, 16, 16]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(0, 4, 7, 7), "empty"),
        (torch.zeros(1, 4, 7, 7), "dead: all zero"),
        (torch.full((1, 4, 7, 7), 6.0), "saturated"),
        (torch.tensor([[0.0, 1.0, float("nan")]]), "1 of 3 values are NaN"),
        (torch.tensor([[0.0, 1.0, float("inf")]]), "1 of 3 values are infinite"),
        (torch.tensor([[1.0, 2.0, 1e5]]), "float16"),
    ],
)
def test_warnings(values, words):
    assert any(words in flag for flag in describe_layer("layer", values).flags)


def test_a_healthy_layer_has_no_warning():
    assert (
        describe_layer("layer", torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)).relu()).flags
        == []
    )


def test_a_dead_layer_in_the_model_is_flagged(cfg, model, record):
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.backbone.fpn_output4.weight.zero_()
        damaged.backbone.fpn_output4.bias.zero_()
        damaged.backbone.fpn_output3.bias[0] = float("nan")
    observed = observe(cfg, damaged, record)
    layers = {layer.name: layer for layer in inspect_activations(observed)}
    assert layers["p4"].flags == ["dead: all zero"]
    assert any("NaN" in flag for flag in layers["p3"].flags)
    assert layers["p5"].flags == []


def test_a_dead_layer_inside_a_head_is_flagged(cfg, model, record):
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.roi_heads.box_head.fc1.weight.zero_()
    observed = observe(cfg, damaged, record)
    layers = {layer.name: layer for layer in inspect_activations(observed)}
    assert layers["roi_heads.box_head.fc1"].flags == ["dead: all zero"]
    assert unused_layers(observed) == []


def test_layers_by_name(cfg, model, record):
    seen = observe(cfg, model, record, layers=["backbone.bottom_up.res4.0.conv1"])
    assert list(seen.layers) == ["backbone.bottom_up.res4.0.conv1"]
    assert draw_activations(seen, "backbone.bottom_up.res4.0.conv1").axes


def test_an_unknown_layer_names_the_nearest(cfg, model, record):
    with pytest.raises(UserError, match=r"no layer 'backbone.fpn_outptu4'. Did you mean backbone.fpn_output4\?"):
        observe(cfg, model, record, layers=["backbone.fpn_outptu4"])
    with pytest.raises(UserError, match=r"'backbone.res4'. Did you mean backbone.bottom_up.res4\?"):
        observe(cfg, model, record, layers=["backbone.res4"])
    assert not any(module._forward_hooks for module in model.modules())


def test_grids():
    assert channel_grid(torch.zeros(1, 0, 4, 4)).shape == (96, 96, 3)
    grid = channel_grid(torch.tensor([[[[0.0, float("nan")], [1.0, 2.0]]]]))
    assert (grid[:40, 60:90] == [255, 0, 255]).all()  # NaN is magenta
    assert channel_grid(torch.rand(5, 32)).ndim == 3
    assert np.ptp(channel_grid(torch.ones(1, 2, 4, 4)), axis=(0, 1)).max() <= 128  # a constant channel has one color
