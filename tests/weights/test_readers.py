import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import check_whole, file_kind
from d2_maskrcnn.weights.readers import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(0)}


def arrays(state=STATE):
    return {name: value.numpy() for name, value in state.items()}


def assert_same(loaded, state=STATE):
    assert list(loaded) == list(state)
    for name, value in state.items():
        torch.testing.assert_close(torch.as_tensor(loaded[name]), torch.as_tensor(value), rtol=0, atol=0)


@pytest.fixture
def save(tmp_path):
    """``save(content, name)``: write a torch file, a pickle or bytes, and return the path."""

    def save(content, name="weights.pth", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".pkl":
            path.write_bytes(pickle.dumps(content, **options))
        else:
            torch.save(content, path, **options)
        return path

    return save


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize(
    "wrap", [lambda s: {"model": s}, lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model_state_dict": s}]
)
def test_torch_files(save, wrap, old_format):
    path = save(wrap(STATE), _use_new_zipfile_serialization=not old_format)
    assert file_kind(path) == ("torch_legacy" if old_format else "torch_zip")
    assert_same(read_weights(path)["model"])
    check_whole(path)


def test_a_modules_state_dict(save):
    state = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).state_dict()
    assert_same(read_weights(str(save(state)))["model"], state)


def test_the_other_states_of_a_checkpoint(save):
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    data = {"model": STATE, "optimizer": optimizer.state_dict(), "iteration": 7, "metadata": {"thing_classes": ["a"]}}
    path = save(data)
    loaded = read_weights(path)
    path.unlink()  # training must not depend on the file
    assert loaded["iteration"] == 7 and loaded["metadata"] == {"thing_classes": ["a"]}
    optimizer.load_state_dict(loaded["optimizer"])
    buffer = optimizer.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(buffer, torch.ones(3))
    assert not buffer.untyped_storage().is_shared() and buffer.is_contiguous()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_zoos_pickles(save, protocol):
    path = save({"model": arrays(), "__author__": "Detectron2 Model Zoo"}, "model_final.pkl", protocol=protocol)
    loaded = read_weights(path)
    assert_same(loaded.pop("model"))
    assert loaded == {"__author__": "Detectron2 Model Zoo"}
    check_whole(path)


def test_matching_heuristics_are_kept(save):
    assert read_weights(save({"model": arrays(), "matching_heuristics": True}, "x.pkl"))["matching_heuristics"] is True


@pytest.mark.parametrize("wrap", [lambda blobs: blobs, lambda blobs: {"blobs": blobs, "cfg": "MODEL: {}"}])
def test_caffe2_blobs(save, msra_blobs, wrap):
    blobs, _ = msra_blobs(50)
    loaded = read_weights(save(wrap(blobs), "R-50.pkl", protocol=2))
    assert loaded["__author__"] == "Caffe2" and loaded["matching_heuristics"] is True
    assert_same(loaded["model"], blobs)


def test_the_format_is_decided_by_the_content(save):
    assert_same(read_weights(save(pickle.dumps({"model": arrays()}), "model.pth"))["model"])
    torch_file = save({"model": STATE})
    assert_same(read_weights(torch_file.rename(torch_file.with_suffix(".pkl")))["model"])


def test_a_second_state_dict_has_its_own_memory(save):
    """An averaged model must not depend on the file either, and keeps torch's module versions."""
    state = torch.nn.BatchNorm2d(2).state_dict()
    path = save({"model": STATE, "averaged": state})
    loaded = read_weights(path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)  # the memory mapping would show these
    assert_same(loaded["averaged"], state)
    assert loaded["averaged"]._metadata == state._metadata


def test_tensors_are_on_the_cpu_and_writable(save):
    path = save({"model": STATE})
    before = path.read_bytes()
    loaded = read_weights(path)["model"]
    assert loaded["a.weight"].device.type == "cpu"
    loaded["a.weight"].add_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"\n\n  <html>", "a web page"),
        (b"\xef\xbb\xbf<?xml", "a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "Git LFS pointer"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x1f\x8b\x08\x00aaaa", "gzip"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"MODEL:\n  DEPTH: 50\n", r"an unknown format \(it begins with b'MODEL"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_format(save, content, what, suffix):
    path = save(content, f"weights.{suffix}")
    for read in (read_weights, check_whole):
        with pytest.raises(UserError, match=what) as info:
            read(path)
        assert str(path) in str(info.value) and "expected a .pth" in str(info.value)
        assert "\n" not in str(info.value)


def test_a_missing_file_names_the_others_in_its_folder(save):
    path = save({"model": STATE}, "R-101.pth")
    with pytest.raises(UserError, match=r"R-50\.pth: file not found; check MODEL\.WEIGHTS.*contains R-101\.pth"):
        read_weights(path.with_name("R-50.pth"))
    with pytest.raises(UserError, match=r"folder .*nowhere does not exist"):
        read_weights(path.parent / "nowhere" / "x.pth")
    with pytest.raises(UserError, match="is a folder"):
        read_weights(path.parent)


def test_a_file_without_read_permission(save):
    path = save({"model": STATE})
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user can read every file")
    with pytest.raises(UserError, match="Permission denied"):
        read_weights(path)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_torch_files(save, keep, old_format):
    path = save({"model": {"w": torch.rand(5000)}}, _use_new_zipfile_serialization=not old_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"truncated or damaged \(\d+ bytes; .*copy or download it again"):
        read_weights(path)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_truncated_pickles(save, keep):
    content = pickle.dumps({"model": {"w": np.random.default_rng(0).random(5000)}}, 2)
    path = save(content[: int(len(content) * keep)], "x.pkl")
    for read in (read_weights, check_whole):
        with pytest.raises(UserError, match="truncated or damaged"):
            read(path)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_flipped_bit_is_detected(save, place):
    path = save({"model": {"w": torch.rand(5000)}})
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    for read in (read_weights, check_whole):
        with pytest.raises(UserError, match="truncated or damaged"):
            read(path)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.pth", {}), ("x.pth", {"_use_new_zipfile_serialization": False}), ("x.pkl", {}), ("x.pkl", {"protocol": 0})],
)
@pytest.mark.parametrize("nested", [False, True])
def test_no_code_in_a_file_is_run(save, tmp_path, name, options, nested):
    marker = tmp_path / "was_run"
    path = save({"model": {"w": [Evil(marker)] if nested else Evil(marker)}}, name, **options)
    with pytest.raises(UserError, match=rf"refused, no code in it was run.*'{os.system.__module__}\.system'") as info:
        read_weights(path)
    assert not marker.exists() and "\n" not in str(info.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_later_protocols(save, tmp_path, protocol, old_format):
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not old_format}
    path = save({"model": {"w": Evil(tmp_path / "was_run")}}, **options)
    with pytest.raises(UserError, match="refused, no code in it was run"):
        read_weights(path)
    assert not (tmp_path / "was_run").exists()
    path = save({"model": STATE}, **options)
    if protocol == 3:
        assert_same(read_weights(path)["model"])
    else:
        with pytest.raises(UserError, match=r"refused.*not of torch.save's protocol.*Save the model's state_dict"):
            read_weights(path)


def test_a_whole_pickled_module_is_refused_by_name(save):
    with pytest.raises(UserError, match=r"tries to import 'torch\.nn\.modules"):
        read_weights(save({"model": torch.nn.Conv2d(1, 1, 1)}))


def test_torchscript_is_refused(save, tmp_path):
    path = tmp_path / "program.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"program/{name}", b"")
    with pytest.raises(UserError, match="a TorchScript program"):
        read_weights(path)


def test_another_zip_archive_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", w=np.ones(3))
    with pytest.raises(UserError, match="a zip archive of other files"):
        read_weights(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({}, "is empty"),
        ({"model": {}}, "is empty"),
        ({"model": {"w": 3}}, "'w' is a int"),
        ({"epoch": 3, "lr": 0.1}, r"'epoch' is a int, not a tensor \(keys: epoch, lr\)"),
        ([torch.ones(1)], "contains a list"),
        (torch.ones(1), "contains a Tensor"),
        ({3: torch.ones(1)}, "3 is not a tensor's name"),
    ],
)
def test_files_without_weights(save, data, what):
    with pytest.raises(UserError, match=what):
        read_weights(save(data))
