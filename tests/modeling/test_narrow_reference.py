"""Comparison with values that Detectron2 computed for narrow models, stored in ``data/narrow_reference.npz``.

The file was made with Detectron2 0.6 (commit 02b5c4e2) on a CPU with one thread. Each variant of ``conftest.py`` was
built with Detectron2's components (``narrow_cfg(variant, ours=False)``), the weights of ``fill_weights`` and the
images of ``make_inputs`` (polygons for ``ciou``, bit masks otherwise). It contains

* in evaluation mode, float32: p3 features, proposals, detections, mask probabilities of each image's first four
  detections, and post-processed masks (``numpy.packbits`` along x);
* in training mode, float64: losses, scalars in the event storage, and the gradients of ``GRADS``. In float32, rounding
  sometimes moves an activation across the corner of a ReLU, which is visible in such a small network;
* of ``plain`` built and trained after ``torch.manual_seed(0)``, with the overrides ``SAMPLING``: the first element of
  each initial parameter, and the losses in float32.
"""

import numpy as np
import pytest
import torch

from d2_maskrcnn.modeling import trace_inference
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

VARIANTS = ("plain", "options", "batchnorm", "ciou", "boxes_only")
CASES = [(variant, channels_last) for variant in VARIANTS for channels_last in (True, False)]
INFERENCE = [case for case in CASES if case[0] in ("plain", "options", "boxes_only")]


@pytest.fixture(scope="module")
def reference(data_dir):
    with np.load(data_dir / "narrow_reference.npz", allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


@pytest.mark.parametrize(("variant", "channels_last"), INFERENCE)
def test_inference(narrow, reference, variant, channels_last):
    model = narrow.model(variant, D2_MASKRCNN__CHANNELS_LAST=channels_last).eval()
    trace = trace_inference(model, narrow.inputs())
    if f"{variant}/p3" in reference:
        assert narrow.relative_error(trace.features["p3"], reference[f"{variant}/p3"]) < 1e-4
    for i in range(2):
        proposals, detections = trace.proposals[i], trace.detections[i]
        index = narrow.pair_boxes(proposals.proposal_boxes.tensor, reference[f"{variant}/proposals{i}"], 0.01)
        assert narrow.relative_error(proposals.objectness_logits[index], reference[f"{variant}/logits{i}"]) < 1e-4
        index = narrow.pair_boxes(detections.pred_boxes.tensor, reference[f"{variant}/boxes{i}"], 0.01)
        assert detections.pred_classes[index].tolist() == reference[f"{variant}/classes{i}"].tolist()
        assert narrow.relative_error(detections.scores[index], reference[f"{variant}/scores{i}"]) < 1e-4
        if variant == "boxes_only":
            assert not detections.has("pred_masks")
            continue
        probabilities = torch.from_numpy(reference[f"{variant}/mask_probs{i}"])
        assert (detections.pred_masks[index][:4] - probabilities).abs().max() < 1e-4
        result = trace.results[i]
        expected = np.unpackbits(reference[f"{variant}/post_masks_packed{i}"], axis=-1)[..., : result.image_size[1]]
        index = narrow.pair_boxes(result.pred_boxes.tensor, reference[f"{variant}/post_boxes{i}"], 0.02)
        different = result.pred_masks[index].numpy() != expected.astype(bool)
        assert different.sum() <= 1e-3 * expected.sum()


@pytest.mark.parametrize(("variant", "channels_last"), CASES)
def test_training(narrow, reference, variant, channels_last):
    model = narrow.model(variant, D2_MASKRCNN__CHANNELS_LAST=channels_last).double().train()
    with EventStorage() as storage:
        losses = model(narrow.inputs("polygon" if variant == "ciou" else "bitmask"))
        events = {name: value for name, (value, _) in storage.latest().items()}
    expected = {name.split("/")[-1]: value for name, value in reference.items() if name.startswith(f"{variant}/loss/")}
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert narrow.relative_error(loss, expected[name]) < 1e-5
    prefix = f"{variant}/event/"
    expected_events = {
        name[len(prefix) :]: float(value) for name, value in reference.items() if name.startswith(prefix)
    }
    assert events == pytest.approx(expected_events, rel=1e-6)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    names = [name for name in narrow.grads if f"{variant}/grad/{name}" in reference]
    assert len(names) >= 5
    for name in names:
        assert narrow.relative_error(parameters[name].grad, reference[f"{variant}/grad/{name}"]) < 1e-3
    if variant == "batchnorm":
        name = "backbone.bottom_up.res4.1.conv2.norm.running_var"
        assert narrow.relative_error(model.state_dict()[name], reference["batchnorm/running_var"]) < 1e-4


def test_initial_weights_and_random_samples(narrow, reference):
    torch.manual_seed(0)
    model = build_model(narrow.cfg(**narrow.sampling)).train()
    first = torch.stack([parameter.detach().flatten()[0] for parameter in model.parameters()])
    assert narrow.relative_error(first, reference["seeded/weights"]) < 1e-5
    losses = model(narrow.inputs())
    assert [losses[name].item() for name in sorted(losses)] == pytest.approx(reference["seeded/losses"], rel=1e-4)


@pytest.mark.parametrize("variant", ["plain", "options", "batchnorm", "boxes_only"])
def test_names_in_the_state_dict(narrow, reference, variant):
    state = narrow.model(variant).state_dict()
    assert [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()] == str(
        reference[f"{variant}/state_names"]
    ).split("\n")
