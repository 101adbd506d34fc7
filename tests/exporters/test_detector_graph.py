"""The graph that exporters follow computes what the model computes, for every option of the model."""

import pytest
import torch

from d2_maskrcnn import UserError
from d2_maskrcnn.exporters.detector_graph import DetectorGraph


@pytest.mark.parametrize("variant", ["plain", "options", "batchnorm", "boxes_only"])
def test_equals_the_model(narrow, narrow_batch, variant):
    images, sizes = narrow_batch
    model = narrow.model(variant).eval()
    inputs = [{"image": image[:, :h, :w]} for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
    boxes, scores, classes, image, *masks = DetectorGraph(model)(images, sizes)
    for index, expected in enumerate(model.inference(inputs, do_postprocess=False)):
        expected = expected[expected.pred_boxes.nonempty()]
        chosen = image == index
        assert len(expected) > 5
        order = narrow.pair_boxes(boxes[chosen], expected.pred_boxes.tensor)
        assert classes[chosen][order].equal(expected.pred_classes)
        assert (scores[chosen][order] - expected.scores).abs().max() < 1e-4
        if masks:
            assert (masks[0][chosen][order] - expected.pred_masks[:, 0]).abs().max() < 1e-3


def test_half(narrow, narrow_batch):
    model = narrow.model("plain").eval()
    boxes, scores, _, _, masks = DetectorGraph(model, dtype=torch.float16)(*narrow_batch)
    expected = DetectorGraph(model)(*narrow_batch)
    assert boxes.dtype == scores.dtype == masks.dtype == torch.float32
    assert scores[:5].sub(expected[1][:5]).abs().max() < 0.02


def test_no_detections(narrow, narrow_batch):
    graph = DetectorGraph(narrow.model("plain", MODEL__ROI_HEADS__SCORE_THRESH_TEST=1.0), paste=True)
    shapes = [tuple(each.shape) for each in graph(*narrow_batch)]
    assert shapes == [(0, 4), (0,), (0,), (0,), (0, 28, 28), (0, 96, 130)]


def test_images_without_pixels_have_no_detections(narrow, narrow_batch):
    images, sizes = narrow_batch
    image = DetectorGraph(narrow.model("plain"))(images, sizes * torch.tensor([[1], [0], [1]]))[3]
    assert set(image.tolist()) == {0, 2}


def test_other_components_are_refused(narrow):
    model = narrow.model("plain")
    model.roi_heads.mask_head = torch.nn.Identity()
    with pytest.raises(UserError, match=r"MODEL\.ROI_MASK_HEAD\.NAME: Identity cannot be exported"):
        DetectorGraph(model)
