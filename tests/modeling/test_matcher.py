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
def test_nothing_to_match(shape, low_quality):
    matches, labels = Matcher([0.3, 0.7], [0, -1, 1], low_quality)(torch.zeros(shape))
    assert matches.tolist() == [0] * shape[1] and labels.tolist() == [0] * shape[1]


@pytest.mark.parametrize(
    ("thresholds", "labels", "low_quality", "expected"),
    [
        ([0.5], [0, 1], False, [1, 0, 1, 0, 1]),
        ([0.3, 0.7], [0, -1, 1], False, [1, 0, -1, 0, -1]),
        # The box of row 1 overlaps candidate 4 most, the box of row 2 candidate 1: both become objects.
        ([0.3, 0.7], [0, -1, 1], True, [1, 1, -1, 0, 1]),
    ],
)
def test_labels(thresholds, labels, low_quality, expected):
    matches, found = Matcher(thresholds, labels, low_quality)(IOU)
    assert found.tolist() == expected and found.dtype == torch.int8
    assert matches.tolist() == IOU.argmax(dim=0).tolist()


def test_a_low_quality_match_keeps_the_box_that_overlaps_it_most():
    iou = torch.tensor([[0.6], [0.2]])
    matches, labels = Matcher([0.7], [0, 1], allow_low_quality_matches=True)(iou)
    assert matches.tolist() == [0] and labels.tolist() == [1]


def test_ties_all_become_objects():
    _, labels = Matcher([0.7], [0, 1], allow_low_quality_matches=True)(torch.tensor([[0.3, 0.3, 0.1]]))
    assert labels.tolist() == [1, 1, 0]


def test_a_threshold_belongs_to_the_upper_label():
    assert Matcher([0.5], [0, 1])(torch.tensor([[0.5, 0.4999]]))[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("thresholds", "labels"), [([], []), ([0.7, 0.3], [0, -1, 1]), ([0.5], [0, 2]), ([0.5], [0]), ([0.0], [0, 1])]
)
def test_refused(thresholds, labels):
    with pytest.raises(UserError, match="IOU_THRESHOLDS"):
        Matcher(thresholds, labels)
