import pytest
import torch

from d2_maskrcnn.modeling.roi_heads.inference import DetectionSettings, postprocess, select_detections
from detectron2.structures import Boxes, Instances

# Three regions; two classes and the background.
PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.04, 0.01, 0.95]])
BOXES = torch.tensor(
    [
        [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 10.0]],
        [[1.0, 0.0, 11.0, 10.0], [30.0, 30.0, 90.0, 90.0]],
        [[5.0, 5.0, 9.0, 9.0], [5.0, 5.0, 9.0, 9.0]],
    ]
)


def select(probabilities=PROBABILITIES, boxes=BOXES, score_thresh=0.05, nms_thresh=0.5, topk=100):
    settings = DetectionSettings(score_thresh, nms_thresh, topk)
    return select_detections([probabilities], [boxes], [(40, 50)], settings).detections[0]


@pytest.mark.parametrize("regions", [0, 3])
def test_no_detections(regions):
    detections = select(PROBABILITIES[:regions], BOXES[:regions], score_thresh=0.9)
    assert len(detections) == 0 and detections.pred_boxes.tensor.shape == (0, 4)
    assert detections.scores.shape == detections.pred_classes.shape == (0,)


def test_no_images():
    assert select_detections([], [], [], DetectionSettings(0.05, 0.5, 100)).detections == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(0, 0.7), (1, 0.3), (1, 0.2)]),  # class 0 of the second region overlaps the first one's by 9/11
        ({"nms_thresh": 0.9}, [(0, 0.7), (0, 0.6), (1, 0.3), (1, 0.2)]),
        ({"score_thresh": 0.3}, [(0, 0.7)]),  # the threshold must be exceeded
        ({"topk": 2}, [(0, 0.7), (1, 0.3)]),
        ({"topk": 0}, []),
        ({"topk": -1}, [(0, 0.7), (1, 0.3), (1, 0.2)]),
    ],
)
def test_settings(settings, expected):
    detections = select(**settings)
    scores = [round(score, 4) for score in detections.scores.tolist()]
    assert list(zip(detections.pred_classes.tolist(), scores, strict=True)) == expected


def test_boxes_are_clipped():
    assert [30.0, 30.0, 50.0, 40.0] in select().pred_boxes.tensor.tolist()


def test_class_agnostic_boxes():
    detections = select(boxes=BOXES[:, :1])
    assert detections.pred_classes.tolist() == [0, 1]  # both regions' class 1 now overlap, too
    assert detections.pred_boxes.tensor[1].tolist() == [1.0, 0.0, 11.0, 10.0]


def test_regions_that_are_not_finite_are_dropped():
    boxes, probabilities = BOXES.clone(), PROBABILITIES.clone()
    boxes[0, 1, 0] = float("inf")
    assert select(boxes=boxes).scores.tolist() == pytest.approx([0.6, 0.3])
    probabilities[0, 2] = float("nan")
    assert select(probabilities=probabilities).scores.tolist() == pytest.approx([0.6, 0.3])


def test_candidates():
    selection = select_detections([PROBABILITIES], [BOXES], [(40, 50)], DetectionSettings(0.05, 0.5, 100))
    candidates, detections = selection.candidates[0], selection.detections[0]
    assert candidates.roi.tolist() == [0, 0, 1, 1] and candidates.pred_classes.tolist() == [0, 1, 0, 1]
    assert torch.equal(candidates.scores[selection.kept[0]], detections.scores)
    assert not detections.has("roi")


def network_detections(boxes, masks=True, size=(50, 100)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.arange(len(boxes)).float()
    if masks:
        instances.pred_masks = torch.ones(len(boxes), 1, 28, 28)
    return instances


@pytest.mark.parametrize("masks", [True, False])
def test_postprocessing_without_detections(masks):
    results = postprocess(network_detections([], masks), 40, 60)
    assert len(results) == 0 and results.image_size == (40, 60) and results.has("pred_masks") == masks
    if masks:
        assert results.pred_masks.shape == (0, 40, 60) and results.pred_masks.dtype == torch.bool


def test_postprocessing_scales_clips_and_filters():
    given = network_detections([[10, 10, 20, 30], [90, 40, 120, 60], [100, 0, 110, 10]])
    results = postprocess(given, 100, 300)
    assert results.pred_boxes.tensor.tolist() == [[30.0, 20.0, 60.0, 60.0], [270.0, 80.0, 300.0, 100.0]]
    assert results.scores.tolist() == [0.0, 1.0]  # the box outside the image is dropped
    assert results.pred_masks.shape == (2, 100, 300)
    assert given.pred_boxes.tensor[0].tolist() == [10.0, 10.0, 20.0, 30.0]  # not changed in place


def test_a_full_mask_fills_its_box():
    results = postprocess(network_detections([[10, 10, 20, 30]], size=(50, 100)), 50, 100)
    expected = torch.zeros(50, 100, dtype=torch.bool)
    expected[10:30, 10:20] = True
    assert torch.equal(results.pred_masks[0], expected)
