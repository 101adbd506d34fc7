import numpy as np
import pytest
import torch

from detectron2.checkpoint import align_and_update_state_dicts


def tensors(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


MODEL = tensors(
    backbone__res2__0__conv1__weight=(4, 3, 1, 1), backbone__res2__0__conv1__bias=(4,), head__fc__weight=(2, 4)
)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, []),
        ({"head.fc.weight": (2, 4)}, ["head.fc.weight"]),
        ({"res2.0.conv1.weight": (4, 3, 1, 1)}, ["backbone.res2.0.conv1.weight"]),
        # the longest of two names that fit
        ({"fc.weight": (2, 4), "head.fc.weight": (2, 4)}, ["fc.weight", "head.fc.weight"]),
        # an ending counts at a dot only
        ({"c.weight": (2, 4)}, ["c.weight"]),
        ({"unknown.weight": (9,)}, ["unknown.weight"]),
        # another shape
        ({"fc.weight": (3, 4)}, ["fc.weight"]),
    ],
)
def test_names_are_matched_by_their_endings(names, expected):
    checkpoint = {name: torch.zeros(shape) for name, shape in names.items()}
    assert list(align_and_update_state_dicts(MODEL, checkpoint, c2_conversion=False)) == expected


def test_another_shape_is_reported(caplog):
    align_and_update_state_dicts(MODEL, {"fc.weight": torch.zeros(3, 4)}, c2_conversion=False)
    assert "(3, 4)" in caplog.text
    assert "(2, 4)" in caplog.text


def test_a_name_that_fits_twice_is_refused():
    model = tensors(a__fc__weight=(1,), b__fc__weight=(1,))
    with pytest.raises(ValueError, match=r"a\.fc\.weight.*b\.fc\.weight"):
        align_and_update_state_dicts(model, {"fc.weight": torch.zeros(1)}, c2_conversion=False)


def test_values_keep_their_type_and_the_input_stays():
    checkpoint = {"fc.weight": np.ones((2, 4), dtype=np.float32)}
    aligned = align_and_update_state_dicts(MODEL, checkpoint, c2_conversion=False)
    assert aligned["head.fc.weight"] is checkpoint["fc.weight"]
    assert list(checkpoint) == ["fc.weight"]


def test_names_of_caffe2_are_translated_first():
    blobs = {"res2_0_branch2a_w": np.zeros((4, 3, 1, 1), np.float32), "fc1000_w": np.zeros(1, np.float32)}
    aligned = align_and_update_state_dicts(MODEL, blobs)
    assert "backbone.res2.0.conv1.weight" in aligned
