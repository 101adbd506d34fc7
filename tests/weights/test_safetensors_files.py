import json
import sys

import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import check_whole, file_kind
from d2_maskrcnn.weights.readers import read_weights
from d2_maskrcnn.weights.safetensors_files import write_safetensors

METADATA = {
    "config": "MODEL: {}",
    "thing_classes": ["cat", "ü"],
    "category_ids": [3, 7],
    "iteration": None,
    "metrics": {"segm/AP": 12.5},
    "engine": {"name": "embedded"},
    "torch": "2",
}


def test_weights_and_metadata_are_read_as_they_were_written(tmp_path):
    weight = torch.arange(36.0).reshape(1, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    state = {"a.weight": weight, "a.bias": torch.zeros(0), "half": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / "model.safetensors"
    write_safetensors(state, path, METADATA)
    assert file_kind(path) == "safetensors"
    check_whole(path)
    loaded = read_weights(path)
    assert loaded["metadata"] == METADATA
    assert loaded["model"].keys() == state.keys()
    assert all(torch.equal(loaded["model"][name], value) for name, value in state.items())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_files_of_other_programs(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors({"a": torch.ones(1)}, path)
    assert read_weights(path).keys() == {"model"}


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_damaged_metadata_is_one_line(tmp_path, text):
    path = tmp_path / "model.safetensors"
    write_safetensors({"a": torch.ones(1)}, path, {"metrics": text})
    with pytest.raises(UserError, match=r"model\.safetensors: the metadata is damaged .* Write the file again") as info:
        read_weights(path)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("damage", ["truncate", "repeat"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "model.safetensors"
    write_safetensors({"a": torch.ones(4)}, path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
        header = f'{{"a":{entry},"a":{entry}}}'.encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="truncated or damaged"):
        read_weights(path)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_safetensors({"a": torch.ones(1)}, path)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)  # as if it were not installed
    for use in (lambda: read_weights(path), lambda: write_safetensors({}, path)):
        with pytest.raises(UserError, match=r'pip install "d2_maskrcnn\[safetensors\]"'):
            use()
