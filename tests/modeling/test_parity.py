"""Comparison with tensors that Detectron2 computed for a narrow ResNet101-FPN (``reference/tiny_R101_FPN.*``)."""

import json

import numpy as np
import pytest
import torch

from d2_maskrcnn.config import add_d2_maskrcnn_config, use_d2_maskrcnn_components
from d2_maskrcnn.modeling import trace_inference
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances


def reference_cfg(path, channels_last=True):
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.merge_from_file(str(path))
    use_d2_maskrcnn_components(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.D2_MASKRCNN.CHANNELS_LAST = channels_last
    return cfg


@pytest.fixture(scope="module")
def reference(shared_dir):
    with np.load(shared_dir / "reference" / "tiny_R101_FPN.npz", allow_pickle=False) as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def reference_inputs(reference):
    inputs = []
    for i in range(2):
        image = reference[f"input{i}/image"]
        height, width = image.shape[1:]
        gt = Instances((height, width))
        gt.gt_boxes = Boxes(reference[f"input{i}/gt_boxes"])
        gt.gt_classes = reference[f"input{i}/gt_classes"]
        gt.gt_masks = BitMasks(reference[f"input{i}/gt_masks"])
        inputs.append({"image": image, "height": 2 * height, "width": 2 * width, "instances": gt})
    return inputs


class Run:
    """A model and its intermediate tensors in evaluation mode."""

    def __init__(self, shared_dir, reference, channels_last):
        self.model = build_model(reference_cfg(shared_dir / "reference" / "tiny_R101_FPN.yaml", channels_last))
        weights = {name[8:]: value for name, value in reference.items() if name.startswith("weights/")}
        self.model.load_state_dict(weights, strict=True)
        self.inputs = reference_inputs(reference)
        self.trace = trace_inference(self.model.eval(), self.inputs)


@pytest.fixture(scope="module", params=[True, False], ids=["channels_last", "contiguous"])
def run(request, shared_dir, reference):
    return Run(shared_dir, reference, request.param)


def test_images_and_features(run, reference, narrow):
    assert narrow.relative_error(run.trace.images, reference["stage/images"]) < 1e-6
    for name in ("p2", "p3", "p4", "p5", "p6"):
        assert narrow.relative_error(run.trace.features[name], reference[f"stage/features/{name}"]) < 1e-4


def test_anchors_are_exact(run, reference):
    for level, anchors in enumerate(run.trace.anchors):
        assert torch.equal(anchors, reference[f"stage/anchors/{level}"])


def test_rpn_logits_and_deltas(run, reference, narrow):
    for level, (logits, deltas) in enumerate(zip(run.trace.rpn_logits, run.trace.rpn_deltas, strict=True)):
        expected = reference[f"stage/rpn_logits/{level}"].permute(0, 2, 3, 1).flatten(1)
        assert narrow.relative_error(logits, expected) < 1e-4
        expected = reference[f"stage/rpn_deltas/{level}"].permute(0, 2, 3, 1).reshape(2, -1, 4)
        assert narrow.relative_error(deltas, expected) < 1e-4


def test_the_same_proposals(run, reference, narrow):
    for i, proposals in enumerate(run.trace.proposals):
        index = narrow.pair_boxes(proposals.proposal_boxes.tensor, reference[f"stage/proposals{i}/boxes"], 0.02)
        logits = proposals.objectness_logits
        assert narrow.relative_error(logits[index], reference[f"stage/proposals{i}/logits"]) < 1e-4
        assert bool((logits[:-1] >= logits[1:]).all())


def test_pooled_boxes_and_box_head(run, reference, narrow):
    trace = run.trace
    first = [narrow.pair_boxes(p.proposal_boxes.tensor, reference[f"stage/proposals{i}/boxes"], 0.02)[:50]
             for i, p in enumerate(trace.proposals)]  # fmt: skip
    index = torch.cat([first[0], first[1] + len(trace.proposals[0])])
    assert narrow.relative_error(trace.box_pooled[index], reference["stage/box_pooled_first50"]) < 1e-4
    assert narrow.relative_error(trace.class_logits[index], reference["stage/box_cls_first50"]) < 1e-4
    assert narrow.relative_error(trace.box_deltas[index], reference["stage/box_reg_first50"]) < 1e-4


def test_the_same_detections(run, reference, narrow):
    for i, detections in enumerate(run.trace.detections):
        index = narrow.pair_boxes(detections.pred_boxes.tensor, reference[f"output{i}/boxes"], 0.02)
        assert torch.equal(detections.pred_classes[index], reference[f"output{i}/classes"])
        assert narrow.relative_error(detections.scores[index], reference[f"output{i}/scores"]) < 1e-4
        assert (detections.pred_masks[index] - reference[f"output{i}/mask_probs"]).abs().max() < 1e-4


def test_post_processing(run, reference, narrow):
    for i, detections in enumerate(run.trace.results):
        assert detections.image_size == tuple(reference[f"output{i}/post_size"].tolist())
        index = narrow.pair_boxes(detections.pred_boxes.tensor, reference[f"output{i}/post_boxes"], 0.04)
        packed = reference[f"output{i}/post_masks_packed"].numpy()
        expected = np.unpackbits(packed, axis=-1)[..., : detections.image_size[1]].astype(bool)
        different = detections.pred_masks[index].numpy() != expected
        assert different.mean() < 1e-3
        assert different.sum() < 1e-3 * expected.sum()  # and relative to the area of the masks


def test_losses_and_gradients(run, reference, narrow):
    model = run.model.train()
    losses = model(run.inputs)
    assert {f"loss/{name}" for name in losses} == {name for name in reference if name.startswith("loss/")}
    for name, loss in losses.items():
        assert abs(loss.item() - reference[f"loss/{name}"].item()) < 1e-5 * max(1.0, reference[f"loss/{name}"].item())
        assert narrow.relative_error(loss, reference[f"loss/{name}"]) < 1e-5
    model.zero_grad()
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    names = [name[5:] for name in reference if name.startswith("grad/")]
    assert len(names) == 5
    for name in names:
        assert narrow.relative_error(parameters[name].grad, reference[f"grad/{name}"]) < 1e-3
    model.eval()


def test_losses_in_evaluation_mode_are_the_same(run, reference, narrow):
    with torch.no_grad():
        losses = run.model.eval().losses(run.inputs)
    for name, loss in losses.items():
        assert narrow.relative_error(loss, reference[f"loss/{name}"]) < 1e-5


def test_names_and_shapes_of_the_zoo(shared_dir):
    folder = shared_dir / "reference"
    model = build_model(reference_cfg(folder / "mask_rcnn_R_101_FPN_3x.yaml"))
    expected = json.loads((folder / "state_dict_R101_FPN.json").read_text())
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
