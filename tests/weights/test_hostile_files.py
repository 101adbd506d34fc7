"""Files made to be read as something other than what was saved: each is refused by name, or read exactly."""

import io
import os
import pickle
import socket
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import check_whole
from d2_maskrcnn.weights.readers import read_weights

STATE = {"a.weight": torch.arange(4096.0), "a.bias": torch.ones(8)}


@pytest.fixture
def saved(tmp_path):
    torch.save({"model": STATE, "iteration": 3}, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def rewrite(path, change=lambda name, data: data, compression=zipfile.ZIP_STORED, comment=b""):
    """Write the records of a torch file anew, each as ``change(name, data)`` returns it (None leaves it out)."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.comment = comment
        for name, data in records:
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)


def refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_rewritten_archive_is_still_read(saved):
    rewrite(saved)
    loaded = read_weights(saved)["model"]
    assert all(torch.equal(loaded[name], value) for name, value in STATE.items())


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records(saved, compression):
    rewrite(saved, compression=compression)
    refused(saved, r"record model/.* is compressed")
    with pytest.raises(UserError, match="compressed"):
        check_whole(saved)


def test_a_record_of_another_size(saved):
    rewrite(saved, lambda name, data: data[:-400] if name.endswith("data/0") else data)
    refused(saved, r"a tensor of 16384 bytes in the record data/0 of 15984 bytes")


def test_a_missing_record(saved):
    rewrite(saved, lambda name, data: None if name.endswith("data/1") else data)
    refused(saved, "truncated or damaged")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_record(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("model/data/0", b"\0" * 16384)
    refused(saved, "records are repeated")


def test_a_second_folder(saved):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps({}, 2))
    refused(saved, "records are repeated")


def test_a_comment(saved):
    rewrite(saved, comment=b"MZ something else")
    refused(saved, "followed by a comment")


@pytest.mark.parametrize("tail", [b"\0", pickle.dumps({"model": {}}), b"PK\x05\x06"])
def test_bytes_behind_the_archive(saved, tail):
    saved.write_bytes(saved.read_bytes() + tail)
    refused(saved, "follows the zip archive|truncated or damaged")


def test_another_byte_order(saved):
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    rewrite(saved, lambda name, data: other if name.endswith("/byteorder") else data)
    refused(saved, "its byte order is")


@pytest.mark.parametrize("name", ["x.pth", "x.pkl", "x.safetensors"])
def test_a_zip_archive_behind_another_format(saved, tmp_path, name):
    path = tmp_path / name
    other = {
        "x.pth": lambda: torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False),
        "x.pkl": lambda: path.write_bytes(pickle.dumps({"model": {"w": np.ones(3)}}, 2)),
        "x.safetensors": lambda: path.write_bytes((2).to_bytes(8, "little") + b"{}"),
    }
    other[name]()
    path.write_bytes(path.read_bytes() + saved.read_bytes())
    refused(path, "a zip archive as well as a")
    with pytest.raises(UserError, match="a zip archive as well"):
        check_whole(path)


def test_a_tar_archive_that_begins_like_a_legacy_file(tmp_path, monkeypatch):
    """torch.load takes a tar archive for its oldest format and unpacks it, whatever the first bytes are."""
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin1") as archive:
        info = tarfile.TarInfo("\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
        archive.addfile(info)
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    refused(path, "truncated or damaged|refused")


def test_bytes_behind_a_legacy_file(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(path)["model"]["a.weight"], STATE["a.weight"])
    path.write_bytes(path.read_bytes() + b"more")
    refused(path, "something follows the weights")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (lambda: torch.eye(4).to_sparse_csr(), "sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.ones(3, device="meta"), "without data"),
        (lambda: torch.ones(1).expand(10**6, 10**6), "expanded to the shape"),
    ],
)
@pytest.mark.parametrize("place", ["model", "trainer"])
@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Validating sparse", "ignore:torch.quantize", "ignore:TypedSt")
def test_tensors_that_are_not_dense(tmp_path, make, reason, place):
    data = {"model": {"w": torch.ones(2)}, "trainer": {"list": [{}]}}
    (data["model"] if place == "model" else data["trainer"]["list"][0])["bad"] = make()
    path = tmp_path / "x.pth"
    torch.save(data, path)
    refused(path, rf"the tensor (model|trainer\.list\.0)\.bad is {reason}")


def test_deep_nesting(tmp_path):
    nested = []
    for _ in range(300):
        nested = [nested]
    torch.save({"model": STATE, "trainer": nested}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "nested deeper than|damaged")


def test_shared_lists_are_not_expanded(tmp_path):
    tree = [torch.ones(2)]
    for _ in range(25):
        tree = [tree] * 100
    torch.save({"model": STATE, "trainer": tree}, tmp_path / "x.pth")
    copied = read_weights(tmp_path / "x.pth")["trainer"]
    assert copied[0] is copied[99]


def test_states_that_are_not_asked_for_are_not_copied(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": STATE, "trainer": {"t": torch.ones(10)}, "ema": {"t": torch.ones(10)}}, path)
    loaded = read_weights(path, copy_states=["ema"])
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)  # visible through the memory mapping
    assert loaded["ema"]["t"].sum() == 10
    assert loaded["trainer"]["t"].sum() == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_sockets(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.pth"))
        for path in (tmp_path / "pipe.pth", tmp_path / "s.pth"):
            refused(path, "not a regular file")


def test_a_device():
    with pytest.raises(UserError, match="not a regular file"):
        read_weights("/dev/zero")


def test_a_path_with_a_null_byte(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(f"{tmp_path}/a\0b.pth")
