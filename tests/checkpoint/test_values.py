"""Weights with impossible values: named in a warning before training, refused before an evaluation."""

import pickle

import numpy as np
import pytest
import torch

from d2_maskrcnn.checkpoint import MaskRCNNCheckpointer
from d2_maskrcnn.errors import UserError
from tests.checkpoint.parts import Heads

WEIGHT, VARIANCE, COUNTER = "backbone.0.weight", "backbone.1.running_var", "backbone.1.num_batches_tracked"


def load(tmp_path, name, change):
    state = Heads(2).state_dict()
    state[name] = change(state[name])
    torch.save({"model": state}, tmp_path / "x.pth")
    checkpointer = MaskRCNNCheckpointer(Heads(2))
    checkpointer.load(str(tmp_path / "x.pth"))
    return checkpointer


def fill(index, value):
    def change(tensor):
        changed = tensor.clone()
        changed.flatten()[index] = value
        return changed

    return change


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        (WEIGHT, fill(3, float("nan")), r"1 tensors have impossible values: backbone\.0\.weight \(NaN\)"),
        (WEIGHT, fill(3, float("-inf")), r"backbone\.0\.weight \(infinite\)"),
        (WEIGHT, lambda t: fill(3, 1e39)(t.double()), r"backbone\.0\.weight \(beyond the range of float32\)"),
        (VARIANCE, fill(1, -0.5), r"backbone\.1\.running_var \(negative variance\)"),
    ],
)
def test_impossible_values(tmp_path, caplog, name, change, reason):
    checkpointer = load(tmp_path, name, change)
    with pytest.raises(UserError, match=f"x.pth cannot be evaluated: .*{reason}"):
        checkpointer.check_evaluable()
    assert "training from these values will probably fail" in caplog.text


@pytest.mark.parametrize(
    ("name", "change", "dtype"),
    [
        (WEIGHT, lambda t: t > 0, "bool"),
        (WEIGHT, lambda t: t.to(torch.int64), "int64"),
        (WEIGHT, lambda t: t.to(torch.uint8), "uint8"),
        (WEIGHT, lambda t: t.to(torch.complex64), "complex64"),
        (WEIGHT, lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (COUNTER, lambda t: t.float(), "float32"),
    ],
)
def test_other_kinds_of_numbers(tmp_path, name, change, dtype):
    with pytest.raises(UserError, match=rf"x\.pth is refused: 1 tensors are not .*{name} \({dtype}\)"):
        load(tmp_path, name, change)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_accepted(tmp_path, dtype, caplog):
    load(tmp_path, WEIGHT, lambda t: t.to(dtype)).check_evaluable()
    assert "impossible" not in caplog.text


def test_values_in_a_pickle(tmp_path):
    state = {name: value.numpy() for name, value in Heads(2).state_dict().items()}
    state[WEIGHT] = np.full_like(state[WEIGHT], np.nan)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": state}))
    checkpointer = MaskRCNNCheckpointer(Heads(2))
    checkpointer.load(str(tmp_path / "x.pkl"))
    with pytest.raises(UserError, match="NaN"):
        checkpointer.check_evaluable()


def test_a_part_of_the_model_is_not_evaluable(tmp_path):
    torch.save({WEIGHT: Heads(2).state_dict()[WEIGHT]}, tmp_path / "x.pth")
    checkpointer = MaskRCNNCheckpointer(Heads(2))
    checkpointer.load(str(tmp_path / "x.pth"))
    with pytest.raises(UserError, match="does not fill the model"):
        checkpointer.check_evaluable()
