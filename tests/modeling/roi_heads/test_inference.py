import pytest
import torch

from d2_maskrcnn.modeling import record_stages
from d2_maskrcnn.modeling.roi_heads.inference import DetectionSettings, select_detections

# Three regions, two classes and the background.
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
    return select_detections([probabilities], [boxes], [(40, 50)], settings)[0]


@pytest.mark.parametrize("regions", [0, 3])
def test_nothing_found(regions):
    found = select(PROBABILITIES[:regions], BOXES[:regions], score_thresh=0.9)
    assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
    assert found.scores.shape == found.pred_classes.shape == (0,)


def test_no_images():
    assert select_detections([], [], [], DetectionSettings(0.05, 0.5, 100)) == []


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
    found = select(**settings)
    scores = [round(score, 4) for score in found.scores.tolist()]
    assert list(zip(found.pred_classes.tolist(), scores, strict=True)) == expected


def test_boxes_are_clipped():
    assert [30.0, 30.0, 50.0, 40.0] in select().pred_boxes.tensor.tolist()


def test_class_agnostic_boxes():
    found = select(boxes=BOXES[:, :1])
    assert found.pred_classes.tolist() == [0, 1]  # both regions' class 1 now overlap, too
    assert found.pred_boxes.tensor[1].tolist() == [1.0, 0.0, 11.0, 10.0]


def test_regions_that_are_not_finite_are_dropped():
    boxes, probabilities = BOXES.clone(), PROBABILITIES.clone()
    boxes[0, 1, 0] = float("inf")
    assert select(boxes=boxes).scores.tolist() == pytest.approx([0.6, 0.3])
    probabilities[0, 2] = float("nan")
    assert select(probabilities=probabilities).scores.tolist() == pytest.approx([0.6, 0.3])


def test_recorded():
    with record_stages() as stages:
        found = select()
    candidates = stages.candidates[0]
    assert candidates.roi.tolist() == [0, 0, 1, 1] and candidates.pred_classes.tolist() == [0, 1, 0, 1]
    assert torch.equal(candidates.scores[stages.kept_candidates[0]], found.scores)
    assert torch.equal(stages.decoded_boxes[0], BOXES) and torch.equal(stages.class_probs[0], PROBABILITIES)
