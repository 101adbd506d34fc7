"""``d2-maskrcnn eval``: a checkpoint alone, and with other data."""

import json

import pytest

from d2_maskrcnn import example
from d2_maskrcnn.cli.main import main


def test_a_checkpoint_and_a_dataset(tiny_shapes, tmp_path, capfd):
    words = ["--weights", str(example.WEIGHTS), "--data", str(tiny_shapes), "--output", str(tmp_path / "out")]
    assert main(["eval", *words, "TEST.DETECTIONS_PER_IMAGE", "5"]) == 0
    results = json.loads((tmp_path / "out" / "inference" / "results.json").read_text())
    assert results["segm"]["AP"] > 30
    assert "masks" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data", "shapes"], "needs a model: add --weights FILE"),
        (["--config-file", "quickstart"], "add --weights FILE or MODEL.WEIGHTS FILE, or --resume"),
        (["out/model.pth"], "out/model.pth: file not found"),
        (["--weights", "nowhere.pth"], "nowhere.pth: file not found"),
    ],
)
def test_bad_input(capfd, words, expected):
    assert main(["eval", *words]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and expected in error
