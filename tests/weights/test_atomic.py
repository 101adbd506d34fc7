"""After every kind of failed write the older file is unchanged, and no other file is left."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.atomic import (
    atomic_torch_save,
    atomic_write_bytes,
    atomic_write_text,
    remove_stale_temporaries,
)


class Unreadable:
    """A class that tensors-only loading refuses."""


class Interrupting:
    """Raises KeyboardInterrupt in the middle of writing."""

    def __reduce__(self):
        raise KeyboardInterrupt


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def older(tmp_path):
    """A folder with an older checkpoint."""
    atomic_torch_save({"model": {"w": torch.ones(3)}}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.fixture
def is_unchanged(older):
    content = older.read_bytes()
    return lambda: older.read_bytes() == content and names(older.parent) == ["a.pth"]


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"model": {}, "iteration": 3, "text": "ü", "nested": {"list": [(1, 2.5, None, True)]}},
        {"bf16": torch.ones(2, dtype=torch.bfloat16), "empty": torch.zeros(0, 4)},
    ],
)
def test_saved_data_can_be_loaded_safely(tmp_path, data):
    atomic_torch_save(data, tmp_path / "a.pth")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert str(loaded) == str(data)
    assert names(tmp_path) == ["a.pth"]


def test_the_file_gets_ordinary_permissions(older):
    (plain := older.parent / "plain").write_text("")
    assert older.stat().st_mode == plain.stat().st_mode


def test_a_text_file_is_replaced(tmp_path):
    for text in ("", "model_0000001.pth", "ü"):
        atomic_write_text(tmp_path / "last", text)
        assert (tmp_path / "last").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["last"]


@pytest.mark.parametrize("content", [Unreadable(), np.float64(1.0), {"hooks": [Unreadable]}])
def test_data_that_could_not_be_loaded_is_not_written(older, is_unchanged, content):
    with pytest.raises(TypeError, match=r"not written.*cannot be loaded safely"):
        atomic_torch_save({"x": content}, older)
    assert is_unchanged()


def test_ctrl_c_leaves_nothing(older, is_unchanged):
    with pytest.raises(KeyboardInterrupt):
        atomic_torch_save({"w": torch.ones(5), "x": Interrupting()}, older)
    assert is_unchanged()


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"Cannot write .*none/a.pth: No such file or directory"):
        atomic_torch_save({}, tmp_path / "none" / "a.pth")


@pytest.fixture
def small_files():
    """Limit files to 100 kB: larger writes fail as on a full disk (Python ignores SIGXFSZ)."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic_torch_save({"w": torch.ones(1_000_000)}, path),
        lambda path: atomic_torch_save({str(i): torch.ones(100) for i in range(1000)}, path),
        lambda path: atomic_write_text(path, "x" * 200_000),
    ],
)
def test_a_failed_write(older, is_unchanged, small_files, write):
    with pytest.raises(UserError) as info:
        write(older)
    for part in (str(older), "File too large", "MiB free", "unchanged"):
        assert part in str(info.value)
    assert is_unchanged()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    path = small_disk / "a.pth"
    atomic_torch_save({"w": torch.ones(1000)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"Cannot write .*a\.pth: No space left on device \(1 MiB free there\)"):
        atomic_torch_save({"w": torch.ones(1_000_000)}, path)
    with pytest.raises(UserError, match="No space left"):
        atomic_write_text(small_disk / "last_checkpoint", "x" * 2_000_000)
    assert path.read_bytes() == before and names(small_disk) == ["a.pth"]


KILLED = """
import sys, torch
from d2_maskrcnn.weights.atomic import atomic_torch_save
print("ready", flush=True)
number = 0
while True:
    number += 1
    atomic_torch_save({"w": torch.full((500_000,), float(number))}, sys.argv[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_writer_leaves_a_complete_file(tmp_path, repo_dir):
    path = tmp_path / "a.pth"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, cwd=repo_dir)
    assert writer.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.137)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    weight = torch.load(path, weights_only=True)["w"]
    assert weight.shape == (500_000,) and (weight == weight[0]).all()
    remove_stale_temporaries(tmp_path)
    assert names(tmp_path) == ["a.pth"]


def test_only_temporaries_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = f".model_final.pth.{dead.pid}.tmp"
    kept = [f".b.pth.{os.getpid()}.tmp", ".notes.tmp", "a.pth", "c.tmp"]
    for name in [stale, *kept]:
        (tmp_path / name).write_text("x")
    assert remove_stale_temporaries(tmp_path) == [stale]
    assert names(tmp_path) == sorted(kept)
    assert remove_stale_temporaries(Path(tmp_path / "none")) == []


def test_names_up_to_the_limit_and_threads_that_write_the_same_file(tmp_path):
    longest = tmp_path / ("\U0001f600" * 62 + ".txt.xy")  # 255 bytes
    atomic_write_text(longest, "a")
    with pytest.raises(UserError, match="too long"):
        atomic_write_text(tmp_path / ("a" * 256), "a")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: atomic_write_text(longest, str(number)), range(40)))
    assert names(tmp_path) == [longest.name] and longest.read_text().isdigit()


def test_the_advice_fits_the_error(tmp_path):
    with pytest.raises(UserError, match="it is a folder; name a file"):
        atomic_write_bytes(tmp_path, b"")
    with pytest.raises(UserError, match=r"No such file or directory; .* Choose another name or folder"):
        atomic_write_bytes(tmp_path / "nowhere" / "a", b"")
