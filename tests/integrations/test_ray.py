"""Prediction of many images with Ray Data: empty input, unreadable images, jobs that were killed, other jobs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from d2_maskrcnn import Predictor, UserError, example
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.integrations.ray import JOB_FILE, ShardWriter, plan_shards, predict_images

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None,
    reason='needs Ray Data: pip install "d2_maskrcnn[ray]"',
)

# A job whose process is killed, without notice to Ray, after the first shard and before the sixth.
KILLED = """
import os, signal, sys, time
from d2_maskrcnn.integrations import ray

class Stalling(ray.ShardWriter):
    def __call__(self, shard):
        if "-00005-" in shard["file"]:
            time.sleep(600)  # until Ray ends the worker of the killed job
        return super().__call__(shard)

class Bar(ray.tqdm):
    def update(self, n=1):
        os.kill(os.getpid(), signal.SIGKILL)

ray.ShardWriter, ray.tqdm = Stalling, Bar
ray.predict_images(sys.argv[1], sys.argv[2], sys.argv[3], shard_size=1, workers=1)
"""


@pytest.fixture
def folder(tmp_path):
    """Ten images, of which 03.jpg is truncated."""
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.open(example.IMAGES[0])
    for index in range(10):
        image.crop((0, 0, 90 + index, 80)).save(folder / f"{index:02}.jpg")
    damaged = folder / "03.jpg"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return folder


def read_lines(output):
    return [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_no_images(tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    command = ["batch", str(example.WEIGHTS), str(tmp_path / "empty"), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert f"{tmp_path / 'empty'}: contains no images" in capfd.readouterr().err
    with pytest.raises(UserError, match="images is empty"):
        predict_images(example.WEIGHTS, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_has_one_line_per_image(folder, tmp_path):
    names = ["03.jpg", "00.jpg", "missing.jpg", "03.jpg", "01.jpg", "missing.jpg"]  # unreadable: first, inside, last
    writer = ShardWriter(str(example.WEIGHTS), 0.5)
    paths = [str(folder / name) for name in names]
    counts = writer({"file": str(tmp_path / "a.jsonl"), "images": paths})
    assert counts == {"done": 6, "unreadable": 4}
    lines = read_lines(tmp_path)
    assert [line["path"] for line in lines] == paths
    assert ["error" in line for line in lines] == [True, False, True, True, False, True]
    assert "03.jpg: not a readable image" in lines[0]["error"]
    expected = Predictor(example.WEIGHTS)(paths[1])
    assert len(expected) > 0
    assert lines[1] == json.loads(expected.to_json())


def test_a_complete_job_is_not_repeated_and_another_one_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(UserError, match=r'ray is not installed: pip install "d2_maskrcnn\[ray\]"'):
        predict_images(example.WEIGHTS, folder, tmp_path, shard_size=5)
    writer = ShardWriter(str(example.WEIGHTS), 0.5)
    for shard in plan_shards([str(path) for path in sorted(folder.iterdir())], 5, tmp_path):
        writer(shard)
    with monkeypatch.context() as patch:
        patch.setattr("d2_maskrcnn.integrations.ray.Predictor", None)  # the model isn't loaded
        summary = predict_images(str(example.WEIGHTS), str(folder), tmp_path, shard_size=5)
    assert (summary.done, summary.unreadable, summary.skipped) == (0, 0, 10)
    with pytest.raises(UserError, match="another job, with a different value of threshold, shard_size; name another"):
        predict_images(example.WEIGHTS, folder, tmp_path, threshold=0.3)
    (folder / "00.jpg").unlink()
    with pytest.raises(UserError, match="different value of images;"):
        predict_images(example.WEIGHTS, folder, tmp_path, shard_size=5)
    (tmp_path / JOB_FILE).write_text("{")
    with pytest.raises(UserError, match=r"job\.json: damaged"):
        predict_images(example.WEIGHTS, folder, tmp_path, shard_size=5)


@pytest.mark.parametrize("options", [{"shard_size": 0}, {"workers": 0}, {"cpus": 0}, {"threshold": 2}])
def test_invalid_numbers(folder, tmp_path, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} "):
        predict_images(example.WEIGHTS, folder, tmp_path / "out", **options)


@needs_ray
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_killed_job_continues(folder, tmp_path, repo_dir, capfd, monkeypatch):
    output = tmp_path / "out"
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(repo_dir)}
    command = [sys.executable, "-c", KILLED, str(example.WEIGHTS), str(folder), str(output)]
    killed = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    complete = {path: path.read_bytes() for path in output.glob("*.jsonl")}
    assert 1 <= len(complete) < 10

    monkeypatch.setenv("PYTHONPATH", str(repo_dir))  # Ray's processes import this package
    words = ["batch", str(example.WEIGHTS), str(folder), "--output", str(output), "--shard-size", "1", "--workers", "1"]
    assert main(words) == 0
    assert "images" in capfd.readouterr().out
    lines = read_lines(output)
    assert [line["path"] for line in lines] == [str(path) for path in sorted(folder.iterdir())]
    assert [line["path"] for line in lines if "error" in line] == [str(folder / "03.jpg")]
    assert all(path.read_bytes() == content for path, content in complete.items())
