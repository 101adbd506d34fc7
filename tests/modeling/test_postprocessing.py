import pytest
import torch

from d2_maskrcnn.modeling.postprocessing import postprocess
from detectron2.structures import Boxes, Instances


def detections(boxes, masks=True, size=(50, 100)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.arange(len(boxes)).float()
    if masks:
        instances.pred_masks = torch.ones(len(boxes), 1, 28, 28)
    return instances


@pytest.mark.parametrize("masks", [True, False])
def test_no_detections(masks):
    found = postprocess(detections([], masks), 40, 60)
    assert len(found) == 0 and found.image_size == (40, 60) and found.has("pred_masks") == masks
    if masks:
        assert found.pred_masks.shape == (0, 40, 60) and found.pred_masks.dtype == torch.bool


def test_scaled_clipped_and_filtered():
    given = detections([[10, 10, 20, 30], [90, 40, 120, 60], [100, 0, 110, 10]])
    found = postprocess(given, 100, 300)
    assert found.pred_boxes.tensor.tolist() == [[30.0, 20.0, 60.0, 60.0], [270.0, 80.0, 300.0, 100.0]]
    assert found.scores.tolist() == [0.0, 1.0]  # the box outside is gone
    assert found.pred_masks.shape == (2, 100, 300)
    assert given.pred_boxes.tensor[0].tolist() == [10.0, 10.0, 20.0, 30.0]  # untouched


def test_a_full_mask_fills_its_box():
    found = postprocess(detections([[10, 10, 20, 30]], size=(50, 100)), 50, 100)
    expected = torch.zeros(50, 100, dtype=torch.bool)
    expected[10:30, 10:20] = True
    assert torch.equal(found.pred_masks[0], expected)
