import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.modeling.matcher import Matcher

IOU = torch.tensor(
    [
        [0.9, 0.1, 0.4, 0.0, 0.6],
        [0.2, 0.1, 0.5, 0.0, 0.65],
        [0.0, 0.2, 0.0, 0.0, 0.0],
    ]
)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
@pytest.mark.parametrize("low_quality", [False, True])
def test_no_boxes_or_no_candidates(shape, low_quality):
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], low_quality)(torch.zeros(shape))
    assert matches.tolist() == [0] * shape[1] and labels.tolist() == [0] * shape[1]


@pytest.mark.parametrize(
    ("thresholds", "labels", "low_quality", "expected"),
    [
        ([0.5], [0, 1], False, [1, 0, 1, 0, 1]),
        ([0.3, 0.7], [0, -1, 1], False, [1, 0, -1, 0, -1]),
        # Candidate 4 has the highest IoU in row 1, candidate 1 in row 2: both become objects.
        ([0.3, 0.7], [0, -1, 1], True, [1, 1, -1, 0, 1]),
    ],
)
def test_labels(thresholds, labels, low_quality, expected):
    matches, actual = Matcher(thresholds, labels, low_quality)(IOU)
    assert actual.tolist() == expected and actual.dtype == torch.int8
    assert matches.tolist() == IOU.argmax(dim=0).tolist()


def test_low_quality_matches_keep_their_best_box():
    iou = torch.tensor([[0.6], [0.2]])
    matches, labels = Matcher([0.7], [0, 1], allow_low_quality_matches=True)(iou)
    assert matches.tolist() == [0] and labels.tolist() == [1]


def test_all_ties_become_objects():
    _, labels = Matcher([0.7], [0, 1], allow_low_quality_matches=True)(torch.tensor([[0.3, 0.3, 0.1]]))
    assert labels.tolist() == [1, 1, 0]


def test_thresholds_are_inclusive():
    assert Matcher([0.5], [0, 1])(torch.tensor([[0.5, 0.4999]]))[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("thresholds", "labels"), [([], []), ([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 2]), ([0.5], [0]), ([0.0], [0, 1])]
)
def test_invalid_thresholds_and_labels(thresholds, labels):
    with pytest.raises(UserError, match="IOU_THRESHOLDS"):
        Matcher(thresholds, labels)
