import copy
import io

import numpy as np
import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling import MaskRCNN
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}


@pytest.fixture(scope="module")
def model(narrow):
    return narrow.model()


def unannotated(height=40, width=48):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    instances.gt_classes = torch.zeros(0, dtype=torch.int64)
    return {"image": torch.zeros(3, height, width, dtype=torch.uint8), "instances": instances}


def with_empty_masks(item):
    height, width = item["image"].shape[1:]
    item["instances"].gt_masks = BitMasks(torch.zeros(0, height, width, dtype=torch.bool))
    return item


@pytest.mark.parametrize("variant", ["plain", "options", "batchnorm", "ciou"])
@pytest.mark.parametrize("case", ["no objects", "no objects, empty masks", "objects in one image", "all"])
def test_every_trainable_parameter_gets_a_gradient(narrow, variant, case):
    """DDP hangs or stops at images without objects otherwise."""
    inputs = {
        "no objects": lambda: [unannotated(), unannotated()],
        "no objects, empty masks": lambda: [with_empty_masks(unannotated()) for _ in range(2)],
        "objects in one image": lambda: [unannotated(), narrow.inputs()[0]],
        "all": narrow.inputs,
    }[case]()
    model = narrow.model(variant).train()
    losses = model(inputs)
    assert set(losses) == LOSSES
    assert all(loss.dim() == 0 and bool(loss.isfinite()) for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_no_detections(model):
    item = {"image": torch.zeros(3, 40, 48, dtype=torch.uint8), "height": 20, "width": 30}
    background_only = copy.deepcopy(model).eval()
    with torch.no_grad():
        background_only.roi_heads.box_predictor.cls_score.bias[-1] = 1e4
    detections = background_only([item])[0]["instances"]
    assert len(detections) == 0 and detections.image_size == (20, 30) and detections.pred_masks.shape == (0, 20, 30)


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_depths_build_and_run(narrow, depth):
    model = build_model(narrow.cfg(MODEL__RESNETS__DEPTH=depth)).eval()
    assert isinstance(model, MaskRCNN)
    assert len(model(narrow.inputs())) == 2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_preprocessing(model, dtype):
    tensors = [
        torch.arange(3 * 40 * 48).view(3, 40, 48).remainder(256).to(dtype),
        torch.full((3, 33, 70), 7).to(dtype),
    ]
    images = model.preprocess_image([{"image": image} for image in tensors])
    assert images.tensor.shape == (2, 3, 64, 96) and images.image_sizes == [(40, 48), (33, 70)]
    mean = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    std = torch.tensor([58.0, 57.0, 57.0]).view(3, 1, 1)
    for actual, image in zip(images.tensor, tensors, strict=True):
        height, width = image.shape[1:]
        torch.testing.assert_close(actual[:, :height, :width], (image - mean) / std)
        assert actual[:, height:].abs().sum() == 0 == actual[:, :, width:].abs().sum()


def test_padding_hardly_changes_detections(model, narrow):
    """Compare the same image alone and in a batch with a larger one."""
    small, big = narrow.inputs()
    alone = model.eval()([small])[0]["instances"]
    together = model([small, {"image": torch.zeros(3, 128, 128, dtype=torch.uint8)}, big])[0]["instances"]
    assert alone.image_size == together.image_size == (128, 192)
    assert len(together) > 0


def test_output_size_defaults_to_the_input(model, narrow):
    item = {"image": narrow.inputs()[0]["image"]}
    assert model.eval()([item])[0]["instances"].image_size == (64, 96)


def test_without_postprocessing(model, narrow):
    inputs = narrow.inputs()
    raw = model.eval().inference(inputs, do_postprocess=False)
    final = model(inputs)
    for item, output in zip(raw, final, strict=True):
        assert item.pred_masks.shape[1:] == (1, 28, 28)
        detections = output["instances"]
        assert detections.image_size == (2 * item.image_size[0], 2 * item.image_size[1])
        with_area = item[item.pred_boxes.nonempty()]
        assert len(with_area) > 0
        torch.testing.assert_close(detections.pred_boxes.tensor, 2 * with_area.pred_boxes.tensor)


def test_masks_for_given_detections(model, narrow):
    inputs = narrow.inputs()
    raw = model.eval().inference(inputs, do_postprocess=False)
    given = [
        Instances(r.image_size, pred_boxes=r.pred_boxes, pred_classes=r.pred_classes, scores=r.scores) for r in raw
    ]
    again = model.inference(inputs, detected_instances=given, do_postprocess=False)
    for a, b in zip(raw, again, strict=True):
        torch.testing.assert_close(a.pred_masks, b.pred_masks)
    assert not given[0].has("pred_masks") or given[0].pred_masks.shape == raw[0].pred_masks.shape


def test_inference_keeps_no_graph(model, narrow):
    detections = model.eval()(narrow.inputs())[0]["instances"]
    assert not detections.scores.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: [], "empty batch"),
        (
            lambda inputs: [{**inputs[0], "image": inputs[0]["image"][:1], "file_name": "a.png"}],
            r"a\.png.*\(1, 64, 96\)",
        ),
        (lambda inputs: [{**inputs[0], "image": inputs[0]["image"][0]}], r"\(64, 96\)"),
        (lambda inputs: [{"image": inputs[0]["image"], "file_name": "b.png"}], r"b\.png.*instances"),
        (lambda inputs: [without_masks(inputs[0])], "gt_masks"),
    ],
    ids=["empty", "gray", "two dimensions", "no annotations", "no masks"],
)
def test_bad_input(model, narrow, change, message):
    with pytest.raises(UserError, match=message):
        model.train()(change(narrow.inputs()))


def without_masks(item):
    item["instances"].remove("gt_masks")
    return item


def test_losses_in_evaluation_mode_change_no_state(narrow):
    model = narrow.model(
        "batchnorm", MODEL__RPN__BATCH_SIZE_PER_IMAGE=16, MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE=16
    ).eval()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    with EventStorage() as storage, torch.no_grad():
        first, second = model.losses(narrow.inputs()), model.losses(narrow.inputs())
        assert storage.latest() == {}
    assert set(first) == LOSSES
    assert {n: x.item() for n, x in first.items()} == {n: x.item() for n, x in second.items()}
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_step_lowers_the_loss(narrow):
    model = narrow.model().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    history = []
    for _ in range(8):
        loss = sum(model(narrow.inputs()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_weights_loaded_after_inference_are_used(narrow):
    """The weights that the first inference folded must not be reused."""
    model, other = narrow.model().eval(), build_model(narrow.cfg()).eval()
    expected = model(narrow.inputs())[0]["instances"]
    other(narrow.inputs())
    other.load_state_dict(model.state_dict())
    detections = other(narrow.inputs())[0]["instances"]
    assert torch.equal(detections.pred_boxes.tensor, expected.pred_boxes.tensor) and torch.equal(
        detections.scores, expected.scores
    )


def test_mixed_precision_on_cpu(narrow):
    model = narrow.model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.train()(narrow.inputs())
        detections = model.eval()(narrow.inputs())[0]["instances"]
    full = {name: loss.item() for name, loss in model.train()(narrow.inputs()).items()}
    for loss in losses.values():
        assert loss.dtype == torch.float32 and bool(loss.isfinite())
    assert sum(losses.values()).item() == pytest.approx(sum(full.values()), rel=0.1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert detections.scores.dtype == detections.pred_boxes.tensor.dtype == torch.float32


def test_a_whole_model_can_be_saved(model, narrow):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    again = torch.load(stream, weights_only=False)
    assert again.memory_format == model.memory_format
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_memory_format(narrow):
    outputs = []
    for channels_last in (True, False):
        model = narrow.model(D2_MASKRCNN__CHANNELS_LAST=channels_last).eval()
        weight = model.backbone.fpn_output2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        batch = model.preprocess_image(narrow.inputs()).tensor
        assert batch.is_contiguous(memory_format=torch.channels_last) == channels_last
        outputs.append(model(narrow.inputs())[0]["instances"])
    index = narrow.pair_boxes(outputs[0].pred_boxes.tensor, outputs[1].pred_boxes.tensor, 0.02)
    torch.testing.assert_close(outputs[0].scores[index], outputs[1].scores, rtol=1e-4, atol=1e-5)


def test_a_component_of_the_user(narrow):
    """Build and use a registered component of the user."""
    from d2_maskrcnn.modeling import MaskRCNNBoxHead
    from detectron2.modeling import ROI_BOX_HEAD_REGISTRY

    class UserBoxHead(MaskRCNNBoxHead):
        pass

    ROI_BOX_HEAD_REGISTRY.register(UserBoxHead)
    cfg = narrow.cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "UserBoxHead"
    model = build_model(cfg).eval()
    assert type(model.roi_heads.box_head) is UserBoxHead
    assert len(model(narrow.inputs())) == 2


def test_built_without_a_config(narrow):
    """Build a model from components instead of a config."""
    parts = build_model(narrow.cfg())
    model = MaskRCNN(
        backbone=parts.backbone,
        proposal_generator=parts.proposal_generator,
        roi_heads=parts.roi_heads,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
    ).eval()
    image = torch.from_numpy(np.zeros((3, 32, 32), dtype=np.uint8))
    assert model([{"image": image}])[0]["instances"].image_size == (32, 32)
