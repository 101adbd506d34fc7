"""Bad input to ``train_net.py`` gives one line on stderr, with the cause and the cure, and status 2.

The cases run in this process through the same ``run_main``, since starting a process takes seconds.
"""

import json
import os
import shutil

import pytest
import torch
from PIL import Image

from d2_maskrcnn.cli.main import run_module


@pytest.fixture
def train_net(repo_dir, capfd):
    """``train_net(*words)``: run it; return the exit status and the stderr line that begins with "error:"."""

    def run(*words):
        config = (
            ["--config-file", str(repo_dir / "configs" / "quickstart.yaml")] if "--config-file" not in words else []
        )
        status = run_module("d2_maskrcnn.cli.train", "train_net.py", [*config, *map(str, words)])
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(lines) == (1 if status else 0), lines
        return status, lines[0] if lines else ""

    return run


@pytest.fixture
def shapes(tiny_shapes, tmp_path, tiny_opts):
    """A copy of the dataset that may be changed: its folder, and the options that name it."""
    folder = tmp_path / "shapes"
    shutil.copytree(tiny_shapes, folder)
    return folder, [word.replace(str(tiny_shapes), str(folder)) for word in tiny_opts]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config-file", "nowhere.yaml"], "file not found"),
        (["SOLVER.BASE_LRR", "1"], "Did you mean SOLVER.BASE_LR?"),
        (["D2_MASKRCNN.DATA.TRAIN_JSON", "nowhere.json"], "nowhere.json"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "MODEL.ROI_HEADS.NUM_CLASSES to 4"),
        (["--eval-only"], "MODEL.WEIGHTS"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["MODEL.META_ARCHITECTURE", "MaskRCN"], "Did you mean MaskRCNN?"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu'; expected one of cpu, cuda"),
    ],
)
def test_arguments(train_net, tiny_opts, words, expected):
    options, pairs = (words, []) if words[0].startswith("--") else ([], words)
    status, line = train_net(*options, *tiny_opts, *pairs)
    assert status == 2
    assert expected in line


def test_annotations(train_net, shapes):
    folder, opts = shapes
    path = folder / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(data))
    status, line = train_net(*opts)
    assert status == 2
    assert "99" in line and "instances_train.json" in line


def test_json_that_is_not_json(train_net, shapes):
    folder, opts = shapes
    (folder / "annotations" / "instances_train.json").write_text('{"images": [')
    status, line = train_net(*opts)
    assert status == 2 and "instances_train.json" in line and "line 1" in line


def test_missing_images(train_net, shapes):
    folder, opts = shapes
    shutil.rmtree(folder / "train")
    status, line = train_net(*opts)
    assert status == 2 and str(folder / "train") in line


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image(train_net, shapes, workers):
    folder, opts = shapes
    for path in (folder / "train").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    status, line = train_net(*opts, "DATALOADER.NUM_WORKERS", workers)
    assert status == 2 and str(folder / "train") in line


def test_image_of_another_size(train_net, shapes):
    folder, opts = shapes
    for path in (folder / "train").iterdir():
        with Image.open(path) as image:
            larger = image.resize((65, 64))
        larger.save(path)
    status, line = train_net(*opts)
    assert status == 2 and "65x64" in line and "64x64" in line and "instances_train.json" in line
    assert any(path.name in line for path in (folder / "train").iterdir())


def test_a_file_that_is_not_a_weight_file(train_net, tiny_opts, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("<html>not found</html>")
    status, line = train_net(*tiny_opts, "MODEL.WEIGHTS", path)
    assert status == 2 and str(path) in line


def test_a_loss_that_is_not_finite(train_net, tiny_opts, tiny_shapes):
    status, line = train_net(*tiny_opts, "SOLVER.BASE_LR", "1000", "SOLVER.WARMUP_FACTOR", "1.0")
    assert status == 2
    assert "iteration" in line and str(tiny_shapes / "train") in line and "resume from the last checkpoint" in line


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_output_folder_without_permission(train_net, tiny_opts, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    status, line = train_net(*tiny_opts, "OUTPUT_DIR", tmp_path / "locked" / "out")
    assert status == 2 and "locked" in line


def test_output_folder_that_is_a_file(train_net, tiny_opts, tmp_path):
    (tmp_path / "file").write_text("")
    status, line = train_net(*tiny_opts, "OUTPUT_DIR", tmp_path / "file")
    assert status == 2 and "OUTPUT_DIR" in line


def test_evaluating_weights_that_do_not_fill_the_model(train_net, tiny_opts, tmp_path):
    names = ["backbone.bottom_up.stem.conv1.weight"]
    path = tmp_path / "part.pth"
    torch.save({"model": {names[0]: torch.zeros(8, 3, 7, 7)}}, path)
    status, line = train_net("--eval-only", *tiny_opts, "MODEL.WEIGHTS", path)
    assert status == 2 and str(path) in line
