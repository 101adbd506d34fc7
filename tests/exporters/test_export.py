"""Exported files detect what the model detects: every format, several sizes and batches, and none at all."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from d2_maskrcnn import Predictor, Results, UserError, evaluate
from d2_maskrcnn.cli.main import main
from d2_maskrcnn.exporters import FORMATS, export, quantize
from d2_maskrcnn.exporters.agreement import compare
from d2_maskrcnn.exporters.openvino_format import convert_onnx
from d2_maskrcnn.runtimes import read_info
from d2_maskrcnn.structures.detections import Detections
from d2_maskrcnn.structures.mask_pasting import paste_masks
from tests.exporters.conftest import NAMES

BATCHES = [[(64, 96)], [(100, 75), (64, 64)], [(33, 130), (200, 50), (64, 64)]]


@pytest.mark.parametrize("format", FORMATS)
def test_same_detections(format, predictor, eager, make_images, assert_same):
    assert predictor(format).class_names == NAMES
    for sizes in BATCHES:
        images = make_images(*sizes)
        actual, expected = (list(each(images, batch_size=len(images))) for each in (predictor(format), eager))
        assert min(map(len, expected)) > 5
        for pair in zip(actual, expected, strict=True):
            assert_same(*pair)


@pytest.mark.parametrize("format", FORMATS)
def test_few_and_no_detections(format, predictor, eager, make_images, assert_same, monkeypatch):
    (image,) = make_images((64, 96))
    expected, model = eager(image), predictor(format).model
    monkeypatch.setattr(model, "score_threshold", float(expected.scores[0] + expected.scores[1]) / 2)
    assert_same(predictor(format)(image), expected[:1])
    monkeypatch.setattr(model, "score_threshold", 1.0)
    assert predictor(format)(image).masks.shape == (0, 64, 96)
    outputs = model.session.run(np.zeros((1, 3, 64, 96), np.uint8), np.zeros((1, 2), np.int64))  # no pixels
    assert [each.shape for each in outputs] == [(0, 4), (0,), (0,), (0,), (0, 28, 28)]


@pytest.mark.parametrize("format", FORMATS)
def test_the_most_and_the_fewest_proposals(format, predictor, eager, make_images, assert_same):
    """Images as large as they are given: 320x320 pixels have 1,000 proposals; a single pixel has one per level."""
    images = [image.transpose(2, 0, 1) for image in make_images((320, 320), (1, 1))]
    inputs = [{"image": torch.from_numpy(np.ascontiguousarray(image))} for image in images]
    with torch.no_grad():
        model = eager.model
        batch = model.preprocess_image(inputs)
        counts = [len(each) for each in model.proposal_generator(batch, model.backbone(batch.tensor), None)[0]]
        assert counts[0] == 1000
        assert 1 <= counts[1] <= 5
        expected, actual = model.inference(inputs), predictor(format).model.inference(inputs)
    for index, image in enumerate(images):
        results = [
            Results(image.transpose(1, 2, 0), Detections.from_instances(each[index]["instances"], image.shape[1:]))
            for each in (actual, expected)
        ]
        assert_same(*results)


def test_score_threshold_of_the_predictor(exported, eager, make_images, assert_same):
    (image,) = make_images((64, 96))
    expected = eager(image)
    threshold = float(expected.scores[3] + expected.scores[4]) / 2
    assert_same(Predictor(exported("onnx"), threshold=threshold)(image), expected[:4])


def test_onnx_uses_standard_operators_and_describes_itself(exported):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("onnx"))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert len(model.functions) == 0
    assert {"RoiAlign", "NonMaxSuppression"} <= {node.op_type for node in model.graph.node}
    images = model.graph.input[0]
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == [
        "batch",
        3,
        "height",
        "width",
    ]
    info = json.loads(model.metadata_props[0].value)
    assert info["class_names"] == NAMES
    assert info["channels"] == "BGR"
    assert info["resize"]["shortest_edge"] == 64
    assert set(info["versions"]) >= {"d2_maskrcnn", "torch"}


def test_numpy_example_runs_without_torch(exported, eager, make_images, repo_dir, tmp_path):
    (image,) = make_images((64, 96))
    Image.fromarray(image).save(tmp_path / "a.png")
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert 'torch' not in sys.modules and 'd2_maskrcnn' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(repo_dir / "examples" / "onnx_numpy.py")]
    done = subprocess.run([*command, str(exported("onnx")), str(tmp_path / "a.png")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    expected = eager(image)
    assert len(lines) == len(expected)
    name, score = lines[0].split()[:2]
    assert name == expected.names[0]
    assert float(score) == pytest.approx(expected.scores[0], abs=1e-4)
    areas = [int(line.split()[-2]) for line in lines]
    assert sum(areas) == pytest.approx(expected.masks.sum(), rel=0.01)


def test_half_fixed_size_and_pasted_masks(eager, make_images, tmp_path):
    path = export(eager, "onnx", tmp_path / "a.onnx", half=True, size=(64, 128), batch=2, paste=True)
    predictor = Predictor(path, threshold=None)
    assert predictor.model.info.precision == "float16"
    images = make_images((64, 96), (100, 75), (64, 130))
    actual, expected = list(predictor(images, batch_size=3)), list(eager(images))
    assert len(actual[0]) == len(expected[0])
    assert actual[0].scores[:3] == pytest.approx(expected[0].scores[:3], abs=0.02)
    assert min(map(len, actual)) > 5  # also of images that are shrunk to fit, and in the batch that is filled up
    inputs = predictor.model.inputs([image.transpose(2, 0, 1) for image in images[:1]])
    boxes, _, _, image, masks, pasted = predictor.model.session.run(**inputs)
    assert set(image) == {0}
    assert pasted.shape == (len(boxes), 64, 128)
    assert pasted.dtype == bool
    expected_masks = paste_masks(torch.from_numpy(masks), torch.from_numpy(boxes), 64, 128).numpy()
    assert (pasted != expected_masks).mean() < 1e-3


def save_images(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def test_openvino_half_rounds_the_weights_alone(exported, eager, make_images, tmp_path):
    openvino = pytest.importorskip("openvino")
    path = tmp_path / "half.xml"
    convert_onnx(exported("onnx"), path, half=True)
    model = openvino.Core().read_model(str(path))
    constants = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    rounded = [op.get_friendly_name() for op in constants if op.get_element_type().get_type_name() == "f16"]
    assert len(rounded) > 20
    assert all(name.endswith(".weight") for name in rounded)
    assert not any("bbox_pred" in name or "anchor_deltas" in name for name in rounded)
    assert path.with_suffix(".bin").stat().st_size < 0.6 * exported("openvino").with_suffix(".bin").stat().st_size
    (image,) = make_images((64, 96))
    assert Predictor(path, threshold=None)(image).scores[:3] == pytest.approx(eager(image).scores[:3], abs=0.005)


def assert_agreement(path, result):
    assert read_info(str(path)).precision == "int8"
    assert result.images == 1
    assert result.detections > 10
    assert result.matched > 0.7  # the weights are random, so some boxes have almost the same score
    assert result.score_difference < 0.03


def test_openvino_int8_agrees_with_float(exported, make_images, tmp_path):
    images = make_images((64, 96))
    result = quantize(exported("onnx"), "openvino", tmp_path / "a.xml", save_images(tmp_path / "similar", images))
    assert "float32" in str(result)
    assert_agreement(tmp_path / "a.xml", result)


def test_onnx_int8_agrees_with_float(checkpoint, exported, make_images, tmp_path, capfd, caplog, monkeypatch):
    """With ranges of similar images most detections stay; with ranges that are 16 times too narrow, none does."""
    source, images, path = exported("onnx"), make_images((64, 96)), tmp_path / "int8.onnx"
    similar = save_images(tmp_path / "similar", images)
    flat = save_images(tmp_path / "flat", [image // 16 + 100 for image in images])
    assert main(["export", str(checkpoint), "--int8", "--output", str(path)]) == 2
    assert "add --calibrate FOLDER" in capfd.readouterr().err
    # The command would trace the model again.
    module = importlib.import_module("d2_maskrcnn.exporters.export")
    monkeypatch.setattr(module, "write_onnx", lambda model, path, info, paste: shutil.copy(source, path))
    assert main(["export", str(checkpoint), "--int8", "--calibrate", str(similar), "--output", str(path)]) == 0
    assert f"{path}: " in capfd.readouterr().out
    assert "1 images: " in caplog.text and " ms per image" in caplog.text
    onnx = pytest.importorskip("onnx")
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(path).graph.node}
    reference = Predictor(source, threshold=None)
    assert_agreement(path, compare(Predictor(path, threshold=None), reference, images))
    quantize(source, "onnx", path, flat)
    assert compare(Predictor(path, threshold=None), reference, images).matched < 0.3


def test_video_takes_a_file(exported, make_images, tmp_path):
    av = pytest.importorskip("av")
    frames = make_images(*[(64, 96)] * 5)
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    words = [str(exported("onnx")), str(tmp_path / "in.mp4"), "--save-json", str(tmp_path / "tracks.jsonl")]
    assert main(["predict", *words, "--output", str(tmp_path / "out.mp4")]) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    lines = [json.loads(line) for line in (tmp_path / "tracks.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    tracks = [each for line in lines for each in line["detections"]]
    assert {each["category"] for each in tracks} <= set(NAMES)
    assert all("track_id" in each and "segmentation" in each for each in tracks)
    assert tracks


def test_eval_command_takes_a_file(exported, tiny_shapes, tmp_path, capfd):
    words = ["--weights", str(exported("onnx")), "--data", str(tiny_shapes), "--output", str(tmp_path / "out")]
    assert main(["eval", *words]) == 0
    results = json.loads((tmp_path / "out" / "inference" / "results.json").read_text())
    assert {"bbox", "segm"} <= set(results)
    assert "masks" in capfd.readouterr().out


def test_evaluation_takes_a_file(exported, eager, tiny_shapes, tmp_path):
    metrics = evaluate(exported("onnx"), tiny_shapes / "annotations" / "instances_val.json", output=tmp_path)
    assert 0 <= metrics["segm/AP"] <= 100
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    scores = sorted(each["score"] for each in results)
    expected = sorted(score for result in eager(tiny_shapes / "val") for score in result.scores)
    assert scores == pytest.approx(expected, abs=1e-4)


def test_bad_arguments(eager, exported, tmp_path):
    with pytest.raises(UserError, match=r"format 'onx': expected onnx, .* Did you mean onnx"):
        export(eager, "onx")
    with pytest.raises(UserError, match=r"a\.pt2: expected a name that ends with \.onnx"):
        export(eager, "onnx", tmp_path / "a.pt2")
    with pytest.raises(UserError, match="already exported"):
        export(exported("onnx"), "torch")
    with pytest.raises(UserError, match="size"):
        export(eager, "onnx", tmp_path / "a.onnx", size=(0, 5))
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(UserError, match=r"a\.onnx: exists already; name another file, or set overwrite"):
        export(eager, "onnx", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_damaged_files_are_refused(exported, tmp_path):
    for format, suffix in (("onnx", ".onnx"), ("torch", ".pt2"), ("openvino", ".xml")):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(exported(format).read_bytes()[:200])
        with pytest.raises(UserError, match=f"damaged.{suffix[1:]}: cannot be opened"):
            Predictor(path)
    with pytest.raises(UserError, match=r"missing\.onnx: file not found"):
        Predictor(tmp_path / "missing.onnx")


def test_config_of_another_model_is_refused(exported, eager):
    cfg = eager.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(exported("onnx"))
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(UserError, match=r"has 4 classes, MODEL\.ROI_HEADS\.NUM_CLASSES is 80"):
        Predictor(cfg)
