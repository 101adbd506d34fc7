"""``d2-maskrcnn predict``: its inputs, its models, and what it writes."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import Predictor, checkpoint, example, model_loading
from d2_maskrcnn.cli import predict
from d2_maskrcnn.cli.main import main


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a.jpg", "folder", "*.png"], (["a.jpg", "folder", "*.png"], None, None)),
        (["https://host/a.jpg?size=1"], (["https://host/a.jpg?size=1"], None, None)),
        (["a.MP4"], (None, "a.MP4", None)),
        (["rtsp://host/1"], (None, "rtsp://host/1", None)),
        (["http://host/stream"], (None, "http://host/stream", None)),
        (["camera"], (None, None, 0)),
        (["camera:2"], (None, None, 2)),
        (["./camera"], (["./camera"], None, None)),
    ],
)
def test_kinds_of_inputs(inputs, expected):
    assert predict.sort_inputs(inputs) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a.jpg"], "--weights FILE, or try --example"),
        (["a.jpg", "model.PTH"], "name model.PTH before the images"),
        (["--weights", "a.pth"], "needs an input"),
        (["--weights", "a.pth", "a.jpg", "b.mp4"], "b.mp4: expected it to be the only input"),
        (["--weights", "nowhere.pth", "a.jpg"], "nowhere.pth: file not found"),
        (["--example", "--weights", "a.pth"], "leave out --weights"),
        (["--example", "nowhere.jpg"], "nowhere.jpg: no such file"),
    ],
)
def test_bad_input(capfd, words, expected):
    assert main(["predict", *words]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and expected in error


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("MODEL: [1, {", "line 1, column 13: not valid YAML"),
        ("MODEL:\n  DEVIC: cpu\n", "unknown key MODEL.DEVIC. Did you mean MODEL.DEVICE?"),
    ],
)
def test_a_damaged_config_in_a_checkpoint(tmp_path, capfd, config, expected):
    path = tmp_path / "damaged.pth"
    torch.save({"model": {"x": torch.zeros(1)}, "metadata": {"config": config}}, path)
    assert main(["predict", str(path), str(example.IMAGES[0])]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: The config stored in {path}") and expected in error
    assert error.endswith("Give the config that the weights were trained with in its place.\n")


def test_the_example_model_is_small_and_its_weights_are_float32_in_the_model():
    assert example.WEIGHTS.stat().st_size < 8_000_000
    predictor = Predictor(example.WEIGHTS, device="cpu")
    assert {str(value.dtype) for value in predictor.model.state_dict().values()} == {"torch.float32", "torch.int64"}
    names = [sorted(predictor.class_names[each] for each in predictor(path).class_ids) for path in example.IMAGES]
    assert names == [
        ["circle", "square", "square", "star", "triangle"],
        ["circle", "square", "square", "star"],
    ]


@pytest.mark.parametrize("words", [["predict"], ["inspect", "--parts", "result"]], ids=["predict", "inspect"])
def test_the_weights_are_read_once(tmp_path, monkeypatch, words):
    read, read_weights = [], model_loading.read_weights
    for module in (checkpoint, model_loading):
        monkeypatch.setattr(module, "read_weights", lambda *a, **k: read.append(a) or read_weights(*a, **k))
    paths = [str(example.WEIGHTS), str(example.IMAGES[0]), "--output", str(tmp_path / "out")]
    assert main([words[0], *paths, *words[1:]]) == 0
    assert len(read) == 1


def test_example(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a second time its own images are replaced
        assert main(["predict", "--example"]) == 0
    for path in example.IMAGES:
        annotated = np.asarray(Image.open(tmp_path / "predictions" / path.name))
        original = np.asarray(Image.open(path))
        assert annotated.shape == original.shape and (annotated != original).any()
    assert "Written: predictions" in caplog.text


def test_weights_as_the_first_input_and_an_image_url(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(example.IMAGES[0].parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/{example.IMAGES[0].name}?size=full"
    try:
        assert main(["predict", str(example.WEIGHTS), url, "--output", str(tmp_path)]) == 0
        assert main(["predict", str(example.WEIGHTS), str(example.IMAGES[0]), "--output", str(tmp_path / "local")]) == 0
    finally:
        server.shutdown()
        server.server_close()
    name = example.IMAGES[0].name
    assert (tmp_path / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_options_between_the_inputs(tmp_path):
    words = [str(example.WEIGHTS), "--output", str(tmp_path / "out"), str(example.IMAGES[0]), "--batch-size", "1"]
    assert main(["predict", *words, "--", str(example.IMAGES[1])]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in example.IMAGES]


def test_a_failed_download_does_not_stop_the_others(tmp_path, capfd):
    words = ["http://127.0.0.1:9/a.jpg", str(example.IMAGES[0]), "--output", str(tmp_path)]
    assert main(["predict", "--example", *words]) == 2
    assert "http://127.0.0.1:9/a.jpg: download failed" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [example.IMAGES[0].name]


def test_keys_after_opts_override_the_stored_config(tmp_path):
    words = ["--example", "--save-json", str(tmp_path / "r.json"), "--opts", "TEST.DETECTIONS_PER_IMAGE", "1"]
    assert main(["predict", *words]) == 0
    assert [each["image_id"] for each in json.loads((tmp_path / "r.json").read_text())] == [1, 2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--output", "y.jpg", "--save-csv", "y.jpg"], "--output and --save-csv are the same file"),
        (["--save-json", "y.json", "--save-csv", "y.images.json"], "--save-json are the same file"),
        (["--output", "a.xyz"], "--output a.xyz: expected a folder, or a file that ends in .jpg, .jpeg, .png"),
    ],
)
def test_outputs_that_are_refused(tmp_path, monkeypatch, capfd, words, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(example.WEIGHTS), str(example.IMAGES[0]), "--overwrite", *words]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and expected in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(5_000_000, 1), (1, 5_000_000)])
def test_an_image_of_extreme_aspect_ratio(size):
    results = Predictor(example.WEIGHTS, device="cpu")([Image.new("RGB", size)])
    assert [(each.image.shape[1], each.image.shape[0]) for each in results] == [size]
