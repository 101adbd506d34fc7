"""The metadata of exported files: written and read again, and refused with one line where it is not usable."""

import json
from dataclasses import replace

import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.runtimes.metadata import FileInfo, is_exported
from d2_maskrcnn.runtimes.sessions import read_metadata

INFO = FileInfo(
    "VERSION: 2", ["cat"], "BGR", 800, 1333, 0.05, 0.5, 100, ["boxes", "scores", "classes", "image_indices"]
)


@pytest.mark.parametrize(
    "info", [INFO, replace(INFO, batch=2, size=(64, 96), precision="int8", versions={"torch": "2"})]
)
def test_round_trip(info):
    assert FileInfo.from_json(info.to_json(), "a.onnx") == info


def test_describes_inputs_and_outputs():
    values = json.loads(INFO.to_json())
    assert set(values["inputs"]) == {"images", "sizes"}
    assert list(values["outputs"]) == INFO.outputs


def test_unusable_metadata_is_refused():
    newer = INFO.to_json().replace('"format_version": 1', '"format_version": 2')
    with pytest.raises(UserError, match="newer version of d2_maskrcnn"):
        FileInfo.from_json(newer, "a.onnx")
    for text in ("", "[]", "{}", '{"format_version": 1}'):
        with pytest.raises(UserError, match=r"a\.onnx: damaged metadata"):
            FileInfo.from_json(text, "a.onnx")


def test_files_of_other_programs_are_refused(tmp_path):
    import torch

    class Twice(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    torch.export.save(torch.export.export(Twice(), (torch.ones(1),)), tmp_path / "other.pt2")
    with pytest.raises(UserError, match="not exported by d2_maskrcnn"):
        read_metadata(tmp_path / "other.pt2")


def test_suffixes():
    assert [is_exported(name) for name in ("a.onnx", "a.XML", "a.pt2", "a.pth", "")] == [True, True, True, False, False]
