import pytest
import torch
import torch.nn.functional as F

from d2_maskrcnn.modeling.postprocessing import postprocess
from d2_maskrcnn.structures.mask_pasting import paste_masks
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


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10.0, 20.0, 30.0],
        [10.3, 9.6, 47.9, 38.2],
        [-5.5, -3.2, 20.0, 12.0],
        [0.0, 0.0, 100.0, 50.0],
        [98.5, 48.5, 130.0, 70.0],
        [30.0, 20.0, 30.2, 20.1],
        [120.0, 60.0, 130.0, 70.0],
    ],
)
def test_pasting_against_a_sampled_grid(box):
    """Against PyTorch's bilinear sampling at every pixel's centre."""
    masks = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = paste_masks(masks, torch.tensor([box]), 50, 100, 0.5)
    ys, xs = torch.meshgrid(torch.arange(50) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    x0, y0, x1, y1 = box
    grid = torch.stack(((xs - x0) / (x1 - x0) * 2 - 1, (ys - y0) / (y1 - y0) * 2 - 1), dim=-1)
    values = F.grid_sample(masks[None], grid[None].float(), align_corners=False)[0]
    certain = (values - 0.5).abs() > 1e-5
    assert torch.equal(found[certain], (values >= 0.5)[certain])
    assert certain.float().mean() > 0.99


def test_threshold():
    masks = torch.full((1, 28, 28), 0.3)
    box = torch.tensor([[10.0, 10.0, 20.0, 30.0]])
    assert not paste_masks(masks, box, 50, 100, 0.5).any()
    assert paste_masks(masks, box, 50, 100, 0.29).sum() == 200
