"""Comparison with Detectron2's own model in the same process, if Detectron2 is installed."""

import pytest
import torch

import d2_maskrcnn
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.skipif(
    d2_maskrcnn.engine_info().name != "installed", reason="the embedded engine has no model of its own"
)


@pytest.fixture(params=["plain", "options", "batchnorm", "ciou", "boxes_only"])
def pair(request, narrow):
    """Build Detectron2's model and ours with the same weights."""
    theirs = narrow.fill(build_model(narrow.cfg(request.param, ours=False)))
    ours = narrow.model(request.param, D2_MASKRCNN__CHANNELS_LAST=False)
    return theirs, ours


def test_no_component_is_shared(pair):
    theirs, ours = pair
    assert type(theirs).__module__.startswith("detectron2.") and type(theirs.roi_heads).__module__.startswith(
        "detectron2."
    )
    assert all(not type(module).__module__.startswith("detectron2.modeling") for module in ours.modules())


def test_inference(pair, narrow):
    results = [model.eval().inference(narrow.inputs(), do_postprocess=False) for model in pair]
    for expected, actual in zip(*results, strict=True):
        assert len(expected) > 0
        index = narrow.pair_boxes(actual.pred_boxes.tensor, expected.pred_boxes.tensor, 0.01)
        assert torch.equal(actual.pred_classes[index], expected.pred_classes)
        if expected.has("pred_masks"):
            assert (actual.pred_masks[index] - expected.pred_masks).abs().max() < 1e-4


def test_training_steps(pair, narrow):
    """Compare the losses of three SGD steps."""
    histories = []
    for model in pair:
        optimizer = torch.optim.SGD([p for p in model.train().parameters() if p.requires_grad], lr=1e-4)
        history = []
        for _ in range(3):
            with EventStorage():
                losses = model(narrow.inputs())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
        histories.append(history)
    for expected, actual in zip(*histories, strict=True):
        assert actual == pytest.approx(expected, rel=1e-3)
    assert histories[0][0] != histories[0][2]


def test_the_same_parameters_are_frozen(pair):
    frozen = [{name for name, p in model.named_parameters() if not p.requires_grad} for model in pair]
    assert frozen[0] == frozen[1]


@pytest.mark.parametrize("variant", ["plain", "options", "batchnorm"])
def test_a_seed_gives_the_same_weights_and_samples(narrow, variant):
    results = []
    for ours in (False, True):
        torch.manual_seed(0)
        model = build_model(narrow.cfg(variant, ours=ours, **narrow.sampling)).train()
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with EventStorage():
            results.append((weights, {name: loss.item() for name, loss in model(narrow.inputs()).items()}))
    (expected_weights, expected_losses), (weights, losses) = results
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights.items())
    assert losses == pytest.approx(expected_losses, rel=1e-5)
