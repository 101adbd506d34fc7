import json
import math

import numpy as np
import pytest
import torch

from detectron2.structures import BoxMode

XYXY, XYWH, ROTATED = BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS


def test_values_are_those_in_datasets_on_disk():
    assert [mode.value for mode in BoxMode] == [0, 1, 2, 3, 4]
    assert json.dumps({"bbox_mode": BoxMode.XYWH_ABS}) == '{"bbox_mode": 1}'


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (np.zeros((0, 4)), np.zeros((0, 4))),
        (torch.zeros(0, 4), torch.zeros(0, 4)),
        ([1, 2, 3, 4], [1, 2, 4, 6]),
        ((1.5, 2.0, 3.0, 4.0), (1.5, 2.0, 4.5, 6.0)),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 4, 6])),
        (np.array([[1.5, 2, 3, 4]]), np.array([[1.5, 2, 4.5, 6]])),
        (torch.tensor([[1, 2, 3, 4], [0, 0, 1, 1]]), torch.tensor([[1, 2, 4, 6], [0, 0, 1, 1]])),
    ],
)
def test_corner_and_size(box, expected):
    original = box.copy() if isinstance(box, np.ndarray) else box.clone() if isinstance(box, torch.Tensor) else box
    converted = BoxMode.convert(box, XYWH, XYXY)
    back = BoxMode.convert(converted, XYXY, XYWH)
    for actual, wanted in ((converted, expected), (back, original), (box, original)):
        assert type(actual) is type(wanted)
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(wanted))
        assert np.asarray(actual).dtype == np.asarray(wanted).dtype


def test_lists_are_rounded_to_float32_as_by_detectron2():
    assert BoxMode.convert([0.1, 0.2, 10.3, 7.7], XYWH, XYXY) == [
        0.10000000149011612,
        0.20000000298023224,
        10.40000057220459,
        7.899999618530273,
    ]


def test_same_mode_gives_the_box_itself():
    box = [1, 2, 3]
    assert BoxMode.convert(box, XYXY, 0) is box


@pytest.mark.parametrize(
    ("angle", "expected"),
    [
        (0, [-2.0, -1.0, 2.0, 1.0]),
        (90, [-1.0, -2.0, 1.0, 2.0]),
        (-180, [-2.0, -1.0, 2.0, 1.0]),
        (30, [-math.sqrt(3) - 0.5, -1 - math.sqrt(3) / 2, math.sqrt(3) + 0.5, 1 + math.sqrt(3) / 2]),
    ],
)
def test_rotated(angle, expected):
    assert BoxMode.convert([0.0, 0.0, 4.0, 2.0, float(angle)], ROTATED, XYXY) == pytest.approx(expected, abs=1e-6)
    assert BoxMode.convert([0.0, 0.0, 4.0, 2.0], XYWH, ROTATED) == [2.0, 1.0, 4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("box", "source", "message"),
    [
        ([], XYWH, "A box is 4 or 5 numbers, got 0"),
        ([1, 2, 3], XYWH, "A box is 4 or 5 numbers, got 3"),
        (np.zeros((2, 3)), XYWH, r"\(N, 4\) or \(N, 5\), got \(2, 3\)"),
        (torch.zeros(1, 1, 4), XYWH, r"\(N, 4\) or \(N, 5\), got \(1, 1, 4\)"),
        ([1, 2, 3, 4], ROTATED, "A box of mode XYWHA_ABS is 5 numbers, got 4"),
        ([1, 2, 3, 4, 5], XYWH, "A box of mode XYWH_ABS is 4 numbers, got 5"),
    ],
)
def test_wrong_shape(box, source, message):
    with pytest.raises(ValueError, match=message):
        BoxMode.convert(box, source, XYXY)


@pytest.mark.parametrize("pair", [(BoxMode.XYXY_REL, XYXY), (XYXY, BoxMode.XYWH_REL), (XYXY, ROTATED)])
def test_unknown_conversions(pair):
    with pytest.raises(NotImplementedError, match=pair[0].name):
        BoxMode.convert([0.0, 0.0, 1.0, 1.0], *pair)
